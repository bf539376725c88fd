"""What each exact rewrite buys alone: the default set without it, and the float64 error after it.

python -m benchmarks.single_rewrites [--size 480x640] [--target tensorrt]

The base network with one block a level, random weights. For each rewrite of the target's set, the FP16 graph of the
set without it is counted and built by TensorRT-RTX as ``benchmarks.rewrites`` does; a rewrite that needs the missing
one then does nothing either, so the figures of the two overlap. The error is the largest difference to the trained
network over its largest output, in float64, when the set is applied one by one up to this rewrite. Figures go into
benchmarks/results/single_rewrites.json one by one. Nothing runs on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.circumstances import circumstances
from benchmarks.rewrites import built, counted, export
from upfusion.bench.report import write_record
from upfusion.cli.sizes import parse_sizes
from upfusion.config import PRESETS
from upfusion.export.deploy import fix_text
from upfusion.export.onnx_export import ExportOptions
from upfusion.export.rewrites import DEFAULTS, apply_rewrites
from upfusion.model import FusionNetwork
from upfusion.text import stand_in_text

RESULT = Path(__file__).parent / "results" / "single_rewrites.json"
CONFIG = dataclasses.replace(PRESETS["base"], num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)
ERROR_SIZE = (48, 64)
KEPT = ("nodes", "gflop", "bytes_fused", "engine")


def small_base() -> FusionNetwork:
    """Return the network, its one-dimensional parameters away from the 0 and 1 that they start with."""
    torch.manual_seed(0)
    network = FusionNetwork(CONFIG).eval().requires_grad_(False)
    for weight in network.parameters():
        if weight.ndim < 2:
            weight.add_(0.2 * torch.randn_like(weight))
    return network


def float64_errors(network: FusionNetwork, names: tuple[str, ...]) -> dict[str, float]:
    """Return the relative error after each rewrite, applied one after the other."""
    wide = network.double()
    text = stand_in_text()
    visible, infrared = (torch.rand(1, planes, *ERROR_SIZE, dtype=torch.float64) for planes in (3, 1))
    wanted = wide(visible, infrared, torch.from_numpy(text.features).double())
    deploy = fix_text(wide, text)[0]
    errors = {}
    for name in names:
        apply_rewrites(deploy, [name])
        errors[name] = float((deploy(visible, infrared) - wanted).abs().max() / wanted.abs().max())
    network.float()
    return errors


def measured(network: FusionNetwork, names: tuple[str, ...], options: ExportOptions) -> dict[str, object]:
    """Return the counts of the FP16 graph of a set of rewrites, and what TensorRT-RTX reports of its engine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        export(network, stand_in_text(), names, options, path)
        figures = counted(path) | {"engine": built(path, options)}
    return {name: figures[name] for name in KEPT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--target", choices=sorted(DEFAULTS), default="tensorrt")
    arguments = parser.parse_args()
    names = DEFAULTS[arguments.target]
    network = small_base()
    record = {
        "network": "base with one block a level and in the refinement, random weights",
        "size": arguments.size,
        "target": arguments.target,
        "float64_error_after": float64_errors(network, names),
        "sets": {},
    }
    options = ExportOptions(precision="fp16", sizes=parse_sizes(arguments.size))
    sets = {"plain": (), "all": names} | {
        f"without {left_out}": tuple(name for name in names if name != left_out) for left_out in names
    }
    for title, chosen in sets.items():
        record["sets"][title] = measured(network, chosen, options)
        write_record(record | circumstances("single_rewrites"), RESULT)
        print(title, json.dumps(record["sets"][title]), flush=True)


if __name__ == "__main__":
    main()
