"""What the runtime itself costs on a CPU: over a bare InferenceSession.run, and stream() against a plain loop.

python -m benchmarks.runtime GRAPH.onnx [--only overhead|stream|device|held] [--between GIVEN.onnx] [--size 480x640]

``overhead``: calls from uint8 to uint8 beside ``InferenceSession.run`` of the same session on prepared inputs, and the
runtime with a backend that computes nothing. ``stream``: a folder of PNG pairs, read, fused and written, by a plain
loop with all threads in one call, and by ``fuse_files``, with one context of all threads and with a context for each
thread. ``device``: the same folder with a backend that only waits, as a CPU does for a GPU. ``held``, with
``--between``: a video's frame that is ranked (GRAPH was exported with ``--expose-ranks``) beside one that takes the
decisions (GIVEN, with ``--ranking given``). Contenders take turns in every round. Figures are added to
benchmarks/results/runtime.json part by part; those of a graph that takes images (``--io image``) as ``overhead_image``
and so on, beside those of one that takes planes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.circumstances import circumstances
from upfusion.bench.contender import Contender, Opened, opened
from upfusion.bench.measure import interleaved_ms
from upfusion.bench.report import write_record
from upfusion.bench.run import BenchOptions, bench
from upfusion.bench.summary import summary_of
from upfusion.cli.sizes import parse_size
from upfusion.runtime.backends.null import NullBackend
from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions
from upfusion.runtime.folder import fuse_files, output_paths
from upfusion.runtime.fuser import Fuser, load
from upfusion.runtime.held_ranking import load_held_ranking
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import read_manifest
from upfusion.runtime.pairs import Pair, find_pairs, read_pair
from upfusion.samples import night_street, write_night_streets

RESULT = Path(__file__).parent / "results" / "runtime.json"
GOAL_SHARE, GOAL_MS = 0.03, 0.3
"""What a call may take beyond a bare run: the larger of the two."""
GOAL_STREAM = 1.2
DEVICE_MS = 20.0
"""What the waiting backend waits."""


class Waiting(NullBackend):
    """Zeros after a while in which the CPU is free."""

    def run(self, inputs: Any) -> Any:
        """Return zeros."""
        time.sleep(DEVICE_MS / 1e3)
        return super().run(inputs)

    def another(self) -> Waiting:
        """Return a further one."""
        return Waiting(self._contract)


def overhead(graph: Path, size: tuple[int, int], threads: int, rounds: int) -> dict[str, Any]:
    """Return what a call takes beyond a bare run."""
    artifact = opened(graph, "cpu", OnnxRuntimeOptions(threads=threads))
    options = BenchOptions(runs=rounds, warm_up=3, parts_runs=5, seconds=0.0, windows=1)
    measured = bench([artifact], None, options, size=size).artifacts[0]
    assert measured.bare is not None
    assert measured.overhead_ms is not None
    contract = artifact.contract
    nothing = Opened(
        name="null",
        path=graph,
        backend=NullBackend(contract),
        contract=contract,
        manifest=None,
        load_seconds=0.0,
        grown_bytes=None,
    )
    with Contender(nothing, [night_street(*size)]) as contender:
        own = interleaved_ms({"call": contender.call_ms}, runs=200, warm_up=20)["call"]
    return {
        "call": dataclasses.asdict(measured.latency),
        "bare_run": dataclasses.asdict(measured.bare),
        "parts_ms": dict(measured.parts_ms),
        "overhead_ms": measured.overhead_ms,
        "overhead_share": measured.overhead_ms / measured.bare.median,
        "without_inference": dataclasses.asdict(summary_of(own)),
        "goal": f"at most {GOAL_SHARE:.0%} or {GOAL_MS} ms, whichever is larger",
        "reached": measured.overhead_ms <= max(GOAL_SHARE * measured.bare.median, GOAL_MS),
    }


def plain_loop(fuse: Fuser, pairs: list[Pair], paths: Mapping[str, Path]) -> None:
    """Read, run and write one pair after another."""
    for pair in pairs:
        write_image(paths[pair.name], fuse(*read_pair(pair)))


def folder(fusers: Mapping[str, Fuser], size: tuple[int, int], count: int, rounds: int) -> dict[str, Any]:
    """Return the pairs per second of each way through a folder; the first is the plain loop."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        pairs = find_pairs(*write_night_streets(root, size, count))
        paths = output_paths(pairs, root / "fused")

        def timed(name: str) -> Callable[[], float]:
            def run() -> float:
                start = time.perf_counter()
                if name == baseline:
                    plain_loop(fusers[name], pairs, paths)
                else:
                    assert len(fuse_files(fusers[name], pairs, paths).written) == count
                return (time.perf_counter() - start) * 1e3

            return run

        baseline = next(iter(fusers))
        for fuser in fusers.values():
            fuser.warm_up()
        times = interleaved_ms({name: timed(name) for name in fusers}, runs=rounds, warm_up=1)
    rates = {name: [count / value * 1e3 for value in values] for name, values in times.items()}
    against = {
        name: float(np.median(np.divide(rate, rates[baseline]))) for name, rate in rates.items() if name != baseline
    }
    return {
        "pairs": count,
        "pairs_per_second": rates,
        "against_the_loop": against,
        "goal": f"at least {GOAL_STREAM}x the plain loop",
        "reached": max(against.values()) >= GOAL_STREAM,
    }


def streamed(graph: Path, size: tuple[int, int], threads: int, count: int, rounds: int) -> dict[str, Any]:
    """Return the figures of a folder on ONNX Runtime."""

    def loaded(contexts: int) -> Fuser:
        return load(graph, device="cpu", contexts=contexts, options=OnnxRuntimeOptions(threads=threads // contexts))

    fusers = {
        "plain loop": loaded(1),
        "stream, one context": loaded(1),
        "stream, a context per thread": loaded(threads),
    }
    try:
        return folder(fusers, size, count, rounds)
    finally:
        for fuser in fusers.values():
            fuser.close()


def waiting(graph: Path, size: tuple[int, int], count: int, rounds: int) -> dict[str, Any]:
    """Return the figures of a folder on a device that computes beside the CPU."""
    contract = read_manifest(graph).contract
    fusers = {name: Fuser(Waiting(contract), contract) for name in ("plain loop", "stream, one context")}
    return {"device_ms": DEVICE_MS} | folder(fusers, size, count, rounds)


def held_ranking(graph: Path, between: Path, size: tuple[int, int], threads: int, rounds: int) -> dict[str, Any]:
    """Return what a frame takes that is ranked, and one that is fused with its decisions."""
    frame = night_street(*size)
    options = OnnxRuntimeOptions(threads=threads)
    with load_held_ranking(graph, between, 2, device="cpu", options=options) as held:
        _, decisions = held.ranker.ranked(*frame)
        calls = {
            "ranked": lambda: held.ranker.ranked(*frame),
            "between": lambda: held.between.given(*frame, decisions),
        }

        def call_ms(name: str) -> float:
            start = time.perf_counter()
            calls[name]()
            return (time.perf_counter() - start) * 1e3

        times = interleaved_ms({name: partial(call_ms, name) for name in calls}, runs=rounds, warm_up=2)
    return {
        **{name: dataclasses.asdict(summary_of(values)) for name, values in times.items()},
        "between_of_ranked": float(np.median(np.divide(times["between"], times["ranked"]))),
        "megabytes": {path.name: round(path.stat().st_size / 1e6, 1) for path in (graph, between)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("graph", type=Path)
    parser.add_argument("--only", choices=("overhead", "stream", "device", "held"))
    parser.add_argument("--between", type=Path)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=10)
    chosen = parser.parse_args()
    size = parse_size(chosen.size)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead": lambda: overhead(chosen.graph, size, chosen.threads, chosen.rounds),
        "stream": lambda: streamed(chosen.graph, size, chosen.threads, chosen.pairs, chosen.rounds),
        "device": lambda: waiting(chosen.graph, size, chosen.pairs, chosen.rounds),
    }
    if chosen.between:
        parts["held"] = lambda: held_ranking(chosen.graph, chosen.between, size, chosen.threads, chosen.rounds)
    elif chosen.only == "held":
        parser.error("--only held needs --between")
    known = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    manifest = read_manifest(chosen.graph)
    for name in [chosen.only] if chosen.only else parts:
        figures = parts[name]()
        known[name if manifest.contract.io == "tensor" else f"{name}_image"] = {
            **circumstances("runtime", threads=chosen.threads, gpu="none: not run on a GPU"),
            "network": manifest.source.name,
            "size": chosen.size,
            **figures,
        }
        print(name, json.dumps(figures, indent=1))
    write_record(known, RESULT)


if __name__ == "__main__":
    main()
