"""What is timed, and how: every contender in turn in every round, so that a noisy machine hurts all alike.

* **Latency**: one call after another, from uint8 images in host memory to uint8 images in host memory, on
  ``time.perf_counter``. Who goes first moves on by one each round.
* **Bare**: ``InferenceSession.run`` of the same session on prepared inputs, in the same rounds.
* **Parts**: in rounds of their own afterwards, since telling the parts apart costs time itself; on engines they are
  the device's clock, without a CUDA graph.
* **Throughput**: as many threads as contexts, each calling without a pause, in several windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from upfusion.bench.contender import Contender
from upfusion.bench.gpu_meter import GpuMeter

Done = Callable[[], None]


def _nothing() -> None:
    """Do nothing."""


def interleaved_ms(
    subjects: Mapping[str, Callable[[], float]], *, runs: int, warm_up: int, done: Done = _nothing
) -> dict[str, list[float]]:
    """Return ``runs`` times for each subject, which return their own milliseconds; the first rounds are thrown away."""
    names = list(subjects)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(warm_up + runs):
        start = round_ % len(names)
        for name in names[start:] + names[:start]:
            elapsed = subjects[name]()
            if round_ >= warm_up:
                times[name].append(elapsed)
        done()
    return times


def parts_of(contenders: Sequence[Contender], runs: int, done: Done = _nothing) -> dict[str, dict[str, float]]:
    """Return each contender's median milliseconds of each part of a call."""
    found: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for round_ in range(1 + runs):
        for contender in contenders:
            parts = contender.parts_ms()
            if round_:
                found[contender.name].append(parts)
        done()
    return {
        name: {part: float(np.median([parts[part] for parts in rounds])) for part in rounds[0]}
        for name, rounds in found.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A way to keep a contender busy."""

    contender: Contender
    batch: int
    """Pairs in one call."""
    contexts: int
    """Threads that call at the same time, each in an execution context of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What a load came to."""

    batch: int
    contexts: int
    pairs_per_second: float
    """Median of the windows."""
    windows: tuple[float, ...]
    """Pairs per second of each window."""
    joules_per_pair: float | None
    """Of the whole board, idle power included; None without a counter."""


def loads_of(
    contender: Contender, batches: Iterable[int] | None, contexts: Iterable[int]
) -> tuple[list[Load], list[str]]:
    """Return the loads that a contender can take, and a sentence for each batch that it cannot.

    Without ``batches`` it is the number that the graph was exported for.
    """
    taken, left_out = [], []
    for batch in batches or (contender.pairs_per_call,):
        if not contender.open_batch and batch != contender.pairs_per_call:
            left_out.append(f"batch {batch}: {contender.name} was exported for batch {contender.pairs_per_call}")
            continue
        taken += [Load(contender=contender, batch=batch, contexts=count) for count in contexts]
    return taken, left_out


def throughputs(
    loads: Sequence[Load], *, seconds: float, windows: int, meter: GpuMeter | None = None, done: Done = _nothing
) -> list[Throughput]:
    """Return the throughput of each load, measured in turn in ``windows`` windows of ``seconds`` each."""
    for load in loads:
        _busy(load, 0.0)  # buffers and captured graphs for this batch in every context
        _busy(load, 0.0)
    rates: list[list[float]] = [[] for _ in loads]
    energies: list[list[float | None]] = [[] for _ in loads]
    for _ in range(windows):
        for place, load in enumerate(loads):
            before = meter.joules() if meter else None
            count, elapsed = _busy(load, seconds)
            after = meter.joules() if meter else None
            rates[place].append(count / elapsed)
            energies[place].append(None if before is None or after is None else (after - before) / count)
            done()
    return [
        Throughput(
            batch=load.batch,
            contexts=load.contexts,
            pairs_per_second=float(np.median(rate)),
            windows=tuple(rate),
            joules_per_pair=_median([value for value in energy if value is not None]),
        )
        for load, rate, energy in zip(loads, rates, energies, strict=True)
    ]


def _busy(load: Load, seconds: float) -> tuple[int, float]:
    """Call from every thread until the time is over, at least twice; return the pairs fused and the seconds taken."""
    start = time.perf_counter()

    def work(thread: int) -> int:
        calls = 0
        while calls < 2 or time.perf_counter() - start < seconds:
            load.contender.call(thread + calls * load.batch, load.batch)
            calls += 1
        return calls * load.batch

    with ThreadPoolExecutor(load.contexts, "upfusion-bench") as pool:
        count = sum(pool.map(work, range(load.contexts)))
    return count, time.perf_counter() - start


def _median(values: Sequence[float]) -> float | None:
    """Return the median, None of nothing."""
    return float(np.median(values)) if values else None
