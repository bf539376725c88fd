"""Latency side by side in one run: PyTorch eager, the plain export, and our export, on ONNX Runtime.

python -m benchmarks.latency [--checkpoint FILE] [--size 480x640] [--runs 10] [--threads N]

From uint8 images in memory to the fused uint8 image. The three are called in turn in every round, so that a noisy
machine hurts all alike; ratios are meant, absolute figures hold for the machine that the result names. Writes
benchmarks/results/latency.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from upfusion.bench.machine import machine
from upfusion.checkpoint import load_checkpoint
from upfusion.cli.artifacts import open_fuser
from upfusion.cli.sizes import parse_size, parse_sizes
from upfusion.export.onnx_export import ExportOptions, export_onnx
from upfusion.export.rewrites import DEFAULTS
from upfusion.runtime import load
from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions
from upfusion.samples import night_street
from upfusion.weights import TINY

RESULT = Path(__file__).parent / "results" / "latency.json"
WARM_UP = 2


def measure(checkpoint: Path, size: str, runs: int, threads: int) -> dict[str, object]:
    """Return the median, 95th percentile and all times of each contender in milliseconds."""
    torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint)
    visible, infrared = night_street(*parse_size(size))
    with tempfile.TemporaryDirectory() as folder:
        graphs = {"plain export": (), "our export": DEFAULTS["cpu"]}
        fusers = {"PyTorch eager": open_fuser(checkpoint)}
        for name, rewrites in graphs.items():
            path = Path(folder) / f"{name.split()[0]}.onnx"
            export_onnx(loaded, path, None, ExportOptions(sizes=parse_sizes(size), rewrites=rewrites))
            fusers[name] = load(path, device="cpu", options=OnnxRuntimeOptions(threads=threads))
        times: dict[str, list[float]] = {name: [] for name in fusers}
        for round_ in range(WARM_UP + runs):
            for name, fuse in fusers.items():
                start = time.perf_counter()
                fuse(visible, infrared)
                if round_ >= WARM_UP:
                    times[name].append(1e3 * (time.perf_counter() - start))
        for fuse in fusers.values():
            fuse.close()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=TINY)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.latency " + " ".join(sys.argv[1:]),
        "machine": machine() | {"threads": options.threads, "gpu": "none: not run on a GPU"},
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "checkpoint": options.checkpoint.name,
        "size": options.size,
        "from": "uint8 images in memory to the fused uint8 image",
        "rewrites_of_our_export": DEFAULTS["cpu"],
        "results": measure(options.checkpoint, options.size, options.runs, options.threads),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in result["results"].items():  # type: ignore[attr-defined]
        print(
            f"{name:14} median {row['median_ms']:7.1f} ms  p95 {row['p95_ms']:7.1f} ms  "
            f"{row['speed_against_plain_export']:.2f}x of the plain export's speed"
        )


if __name__ == "__main__":
    main()
