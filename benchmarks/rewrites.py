"""What the rewrites buy: nodes, counted bytes, live memory, TensorRT-RTX's memory, and the error in float64.

python -m benchmarks.rewrites [--golden ../shared/golden] [--size 480x640] [--forms paper,plain,...] [--engines]

The base network with the golden recipe's weights, exported in five forms. ``paper`` is the reference: the plain
deploy form with every layer norm spelled out as the paper's equations read and every selection an element gather.
Each form is exported in both precisions, cleaned by ``export.simplify`` alike, and counted by ``export.cost``. With
``--engines`` its FP16 graph is built by TensorRT-RTX, which without a GPU reports its activation memory and lists its
layers with what they read and write: what became of the cost model's assumptions. Figures are
added to benchmarks/results/rewrites.json form by form.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from benchmarks.circumstances import circumstances
from benchmarks.golden import GOLDEN, golden_network
from upfusion.bench.report import write_record
from upfusion.cli.memory import keep_freed_memory
from upfusion.cli.sizes import parse_sizes
from upfusion.export import deploy as deploy_module
from upfusion.export.builder.engine import request_from_contract
from upfusion.export.builder.options import BuildOptions
from upfusion.export.builder.process import build_in_worker
from upfusion.export.cost import cost_of, gpu_named, read_graph
from upfusion.export.deploy import DeployNetwork, fix_text, use_half_maps
from upfusion.export.onnx_export import ExportOptions, WithDecisions, contract_of, graph_of
from upfusion.export.rewrites import DEFAULTS, apply_rewrites, chosen_rewrites
from upfusion.model import FusionNetwork, pruning
from upfusion.model.layers import LayerNorm2d, widen
from upfusion.text import TextFeatures

RESULT = Path(__file__).parent / "results" / "rewrites.json"
FORMS: dict[str, tuple[str, ...]] = {
    "paper": (),
    "plain": (),
    "tensorrt": DEFAULTS["tensorrt"],
    "lean": chosen_rewrites("tensorrt", lean=True),
    "cpu": DEFAULTS["cpu"],
}


class SpelledNorm(nn.Module):
    """A layer norm over the channels in primitive steps."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        rows = widen(x).flatten(2).transpose(1, 2)  # (B, N, C)
        deviation = rows - rows.mean(-1, keepdim=True)
        normed = deviation / torch.sqrt(rows.var(-1, keepdim=True, unbiased=False) + self.eps)
        return (normed * self.weight + self.bias).transpose(1, 2).unflatten(2, x.shape[-2:]).to(x.dtype)


def gather_elements(x: Tensor, order: Tensor) -> Tensor:
    """Take channels by an index as large as the result."""
    return torch.gather(x, 1, order[:, :, None, None].expand(-1, -1, *x.shape[-2:]))


def spell_out(deploy: DeployNetwork) -> None:
    """Put the reference's norms into a deploy form."""
    for parent in list(deploy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LayerNorm2d):
                setattr(parent, name, SpelledNorm(child))


def export(
    network: FusionNetwork,
    text: TextFeatures,
    names: tuple[str, ...],
    options: ExportOptions,
    path: Path,
    *,
    spelled_out: bool = False,
) -> float:
    """Write one set of rewrites without comparing it (the tests do); return the seconds it took.

    ``spelled_out``: with the norms and selections of the reference form.
    """
    start = time.perf_counter()
    deploy = fix_text(network, text)[0]
    taken = deploy_module.take_channels
    if spelled_out:
        spell_out(deploy)
        deploy_module.take_channels = pruning.take_channels = gather_elements
    try:
        apply_rewrites(deploy, names)
        if options.precision == "fp16":
            use_half_maps(deploy)
        contract = contract_of(options)
        graph = graph_of(WithDecisions(deploy), contract)
    finally:
        deploy_module.take_channels = pruning.take_channels = taken
    del graph.graph.output[len(contract.outputs) :]
    onnx.save(graph, path)
    return time.perf_counter() - start


def counted(path: Path) -> dict[str, object]:
    """Return the cost model's figures."""
    cost = cost_of(read_graph(path), gpu_named("H200"))
    return {
        "nodes": cost.total.nodes,
        "kernels": cost.total.kernels,
        "gflop": round(cost.total.flops / 1e9, 1),
        "bytes_unfused": cost.total.bytes_unfused,
        "bytes_fused": cost.total.bytes_fused,
        "peak_live_bytes": cost.peak_bytes,
        "weight_bytes": cost.total.weight_bytes,
        "roofline_ms_h200": round(cost.total.roofline_ms or 0.0, 2),
        "node_kinds": dict(cost.node_kinds),
    }


def built(graph: Path, options: ExportOptions) -> dict[str, object]:
    """Build with TensorRT-RTX and return what it reports; nothing runs on a GPU."""
    start = time.perf_counter()
    plan = graph.with_suffix(".engine")
    build = BuildOptions(builder="tensorrt-rtx")
    request = request_from_contract(contract_of(options), options.precision, graph, plan, "tensorrt-rtx", build)
    finished = build_in_worker(request)
    return {
        "builder": f"tensorrt-rtx {finished.version}",
        "activation_memory_bytes": finished.activation_memory_bytes,
        "weights_bytes": finished.weights_bytes,
        "bytes_moved": finished.bytes_moved,
        "seconds": round(time.perf_counter() - start, 1),
    }


def add(form: str, size: str, figures: dict[str, object]) -> None:
    """Put one form's figures into the result file."""
    known = json.loads(RESULT.read_text()) if RESULT.is_file() else {"forms": {}}
    known |= {"network": "base, recipe full", "size": size, "rewrites": {name: list(FORMS[name]) for name in FORMS}}
    known["forms"][form] = known["forms"].get(form, {}) | figures | circumstances("rewrites")
    RESULT.parent.mkdir(exist_ok=True)
    write_record(known, RESULT)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--golden", type=Path, default=GOLDEN)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--precisions", default="fp32,fp16")
    parser.add_argument("--engines", action="store_true", help="build the FP16 graphs with TensorRT-RTX")
    arguments = parser.parse_args()
    network, text = golden_network("full", arguments.golden)
    for form in arguments.forms.split(","):
        for precision in arguments.precisions.split(","):
            options = ExportOptions(precision=precision, sizes=parse_sizes(arguments.size))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "graph.onnx"
                seconds = export(network, text, FORMS[form], options, path, spelled_out=form == "paper")
                figures = {"export_seconds": round(seconds, 1), **counted(path)}
                if arguments.engines and precision == "fp16":
                    figures["engine"] = built(path, options)
            add(form, arguments.size, {precision: figures})
            print(form, precision, {name: value for name, value in figures.items() if name != "node_kinds"}, flush=True)


if __name__ == "__main__":
    main()
