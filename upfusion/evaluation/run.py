"""Run fusion methods over the pairs of a dataset and measure the results, in several processes, resumably."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import numpy.typing as npt

from upfusion.evaluation.datasets import Selection
from upfusion.evaluation.journal import Journal
from upfusion.evaluation.table import MethodInfo, Table, table_from
from upfusion.metrics import Sources, evaluate_sources, metric_named
from upfusion.runtime.errors import InputError, UPFusionError
from upfusion.runtime.files import sha256_of
from upfusion.runtime.images import Image, gray8
from upfusion.runtime.pairs import Pair, read_pair

Gray = npt.NDArray[np.uint8]
Method = Callable[[Image, Image], Gray]
"""(first as its file has it: gray or RGB, second gray) -> fused luma (H, W) uint8."""

MOST_WORKERS = 8  # each keeps the filters and maps of a pair: 0.2 GB at 480x640, 1 GB at 1024x1280


def evaluate_selection(
    selection: Selection,
    methods: Mapping[str, Method],
    infos: Mapping[str, MethodInfo],
    names: Sequence[str],
    *,
    journal: Path | None = None,
    workers: int | None = None,
    done: Callable[[str], object] = lambda pair: None,
) -> Table:
    """Return the metrics ``names`` of every method on every pair of the selection.

    Images are fused one after another in this process, where the artifacts are loaded; metrics are computed in
    ``workers`` processes meanwhile (by default one per core, at most 8; 1 stays in this process). What the metrics
    compute of a pair's sources alone is shared by its methods. ``journal`` keeps values on disk as they come, and
    what it holds already is not computed again. ``done`` is called with a pair's name when it is measured.

    The processes are spawned: a script calls this under ``if __name__ == "__main__":``.

    Raises:
        InputError: an image cannot be used, a metric is unknown, or a method does not return an (H, W) uint8 image
            of the pair's size.
    """
    for name in names:
        metric_named(name)
    assert set(methods) == set(infos)
    count = min(workers or default_workers(), len(selection.pairs))
    values: dict[str, dict[str, dict[str, float]]] = {method: {} for method in methods}
    with Journal(journal) as kept, _executor(count) as executor:
        waiting: deque[tuple[Pair, str, Future[dict[str, dict[str, float]]]]] = deque()

        def collect() -> None:
            pair, digest, future = waiting.popleft()
            for method, measured in _result(future).items():
                kept.add((infos[method].identity, digest), measured)
            for method, info in infos.items():
                values[method][pair.name] = kept.get((info.identity, digest))
            done(pair.name)

        for pair in selection.pairs:
            digest = _digest(pair)
            missing = [m for m, info in infos.items() if not set(names) <= kept.get((info.identity, digest)).keys()]
            waiting.append((pair, digest, _submit(executor, pair, {m: methods[m] for m in missing}, tuple(names))))
            # Two pairs per process ahead keep them busy without holding a whole dataset in memory.
            while waiting and (len(waiting) > 2 * count or waiting[0][2].done()):
                collect()
        while waiting:
            collect()
    return table_from(selection.name, selection.split, names, infos, values)


def default_workers() -> int:
    """Return how many processes compute metrics unless told otherwise."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, available)


def measure(
    first: Gray, second: Gray, fused: Mapping[str, Gray], names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Return the metrics of several fused images of one pair, by method.

    Raises:
        InputError: a fused image has another size or type; the message names the method.
    """
    sources = Sources(first, second)
    found = {}
    for method, image in fused.items():
        try:
            found[method] = evaluate_sources(sources, image, names)
        except InputError as error:
            raise InputError(f"{method}: {error.problem}", error.hint) from error
    return found


def _submit(
    executor: Executor | None, pair: Pair, methods: Mapping[str, Method], names: tuple[str, ...]
) -> Future[dict[str, dict[str, float]]]:
    """Fuse the pair here and have the results measured."""
    if methods:
        first, second = read_pair(pair)
        fused = {name: np.asarray(method(first, second)) for name, method in methods.items()}
        if executor is not None:
            return executor.submit(measure, gray8(first), gray8(second), fused, names)
    future: Future[dict[str, dict[str, float]]] = Future()
    future.set_result(measure(gray8(first), gray8(second), fused, names) if methods else {})
    return future


def _result(future: Future[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UPFusionError(
            "a process that computes metrics died, most likely for lack of memory",
            "run again with fewer, such as --workers 1: what was measured is kept",
        ) from error


@contextlib.contextmanager
def _executor(count: int) -> Iterator[ProcessPoolExecutor | None]:
    """Yield a pool, or None for a single process."""
    if count <= 1:
        yield None
        return
    # Spawned, not forked: this process may hold a GPU and threads of an inference library.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_use_one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _digest(pair: Pair) -> str:
    """Return what names the pair's files by their content."""
    return hashlib.sha256(f"{sha256_of(pair.first)} {sha256_of(pair.second)}".encode()).hexdigest()
