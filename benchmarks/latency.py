"""Latency side by side in one run: PyTorch eager, the plain export, and our export, on ONNX Runtime.

python -m benchmarks.latency [--checkpoint FILE] [--size 480x640] [--runs 10] [--threads N]

From uint8 images in memory to the fused uint8 image. The three are called in turn in every round, so that a noisy
machine hurts all alike; ratios are meant, absolute figures hold for the machine that the result names. Writes
benchmarks/results/latency.json.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from benchmarks.circumstances import circumstances
from upfusion.bench.contender import ImagePair
from upfusion.bench.measure import interleaved_ms
from upfusion.bench.report import write_record
from upfusion.checkpoint import load_checkpoint
from upfusion.cli.artifacts import open_fuser
from upfusion.cli.sizes import parse_size, parse_sizes
from upfusion.export.onnx_export import ExportOptions, export_onnx
from upfusion.export.rewrites import DEFAULTS
from upfusion.runtime import Fuser, load
from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions
from upfusion.samples import night_street
from upfusion.weights import TINY

RESULT = Path(__file__).parent / "results" / "latency.json"
WARM_UP = 2


def measure(checkpoint: Path, size: str, runs: int, threads: int) -> dict[str, dict[str, object]]:
    """Return the median, 95th percentile and all times of each contender in milliseconds."""
    torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint)
    images = night_street(*parse_size(size))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        fusers = {"PyTorch eager": opened.enter_context(open_fuser(checkpoint))}
        for name, rewrites in {"plain export": (), "our export": DEFAULTS["cpu"]}.items():
            path = Path(folder) / f"{name.split()[0]}.onnx"
            export_onnx(loaded, path, None, ExportOptions(sizes=parse_sizes(size), rewrites=rewrites))
            fuser = load(path, device="cpu", options=OnnxRuntimeOptions(threads=threads))
            fusers[name] = opened.enter_context(fuser)
        calls = {name: functools.partial(call_ms, fuser, images) for name, fuser in fusers.items()}
        times = interleaved_ms(calls, runs=runs, warm_up=WARM_UP)
    baseline = float(np.median(times["plain export"]))
    return {
        name: {
            "median_ms": float(np.median(values)),
            "p95_ms": float(np.percentile(values, 95)),
            "speed_against_plain_export": baseline / float(np.median(values)),
            "times_ms": values,
        }
        for name, values in times.items()
    }


def call_ms(fuse: Fuser, images: ImagePair) -> float:
    """Return the milliseconds of one call."""
    start = time.perf_counter()
    fuse(*images)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=TINY)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    result = {
        **circumstances("latency", threads=options.threads, gpu="none: not run on a GPU"),
        "checkpoint": options.checkpoint.name,
        "size": options.size,
        "from": "uint8 images in memory to the fused uint8 image",
        "rewrites_of_our_export": DEFAULTS["cpu"],
        "results": measure(options.checkpoint, options.size, options.runs, options.threads),
    }
    write_record(result, RESULT)
    for name, row in result["results"].items():
        print(
            f"{name:14} median {row['median_ms']:7.1f} ms  p95 {row['p95_ms']:7.1f} ms  "
            f"{row['speed_against_plain_export']:.2f}x of the plain export's speed"
        )


if __name__ == "__main__":
    main()
