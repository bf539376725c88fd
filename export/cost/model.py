"""Operations, bytes, live memory and the least time of a graph, per block and in all."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from upfusion.export.cost.gpus import Gpu
from upfusion.export.cost.graph import Graph, Node
from upfusion.export.cost.kernels import PRODUCTS, Kernel, bytes_moved, is_view, kernels_of, sources_of

BLOCKS: tuple[tuple[str, str], ...] = (
    (r"pruning", "channel pruning"),
    (r"encoders_(?:visible|infrared)\.(\d)|encode\.levels\.(\d)", "encoders level {}"),
    (r"perturbations\.(\d)", "perturbation level {}"),
    (r"decoders\.(\d)", "decoder level {}"),
    (r"refinement", "refinement"),
    (r"downs|ups|reduces|encode|decode|output", "between levels"),
)
"""Pattern of a module path -> name of the block; the first that matches. The rest is the front end."""
FRONT = "front end, edges"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCost:
    """What one block, or the whole graph, costs."""

    flops: int
    """Two for each multiply-add of convolutions and matrix products, one for each element that other kernels make."""
    bytes_unfused: int
    bytes_fused: int
    weight_bytes: int
    kernels: int
    nodes: int
    roofline_ms: float | None
    """Sum over kernels of the larger of arithmetic and memory time; None without a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCost:
    """The whole graph."""

    total: BlockCost
    blocks: Mapping[str, BlockCost]
    peak_bytes: int
    """Most bytes of activations alive at once, kernels in file order, memory freed after the last reader."""
    node_kinds: Mapping[str, int]
    size: tuple[int, int]
    precision: str
    rewrites: tuple[str, ...]
    gpu: str | None


def cost_of(graph: Graph, gpu: Gpu | None = None) -> GraphCost:
    """Count a graph under the assumptions of :mod:`upfusion.export.cost.kernels`."""
    kernels = kernels_of(graph)
    source = sources_of(graph)
    names = list(dict.fromkeys(block_of(node) for node in graph.nodes))
    nodes_in = {name: [node for node in graph.nodes if block_of(node) == name] for name in names}
    kernels_in: dict[str, list[Kernel]] = {name: [] for name in names}
    for kernel in kernels:
        kernels_in[block_of(kernel.leader)].append(kernel)
    blocks = {name: _block(graph, nodes_in[name], kernels_in[name], gpu, source) for name in names}
    return GraphCost(
        total=_block(graph, list(graph.nodes), kernels, gpu, source),
        blocks=blocks,
        peak_bytes=peak_bytes(graph, kernels, source),
        node_kinds=dict(Counter(node.kind for node in graph.nodes).most_common()),
        size=graph.size,
        precision=graph.precision,
        rewrites=graph.rewrites,
        gpu=gpu.name if gpu else None,
    )


def rooflines_of(graph: Graph, gpus: Iterable[Gpu]) -> dict[str, float]:
    """Return the least time in milliseconds on each GPU, by its name."""
    kernels, source = kernels_of(graph), sources_of(graph)
    return {gpu.name: sum(_milliseconds(graph, kernel, gpu, source) for kernel in kernels) for gpu in gpus}


def block_of(node: Node) -> str:
    """Return the block that a node belongs to, from the modules that the exporter noted."""
    path = " ".join(node.scopes)
    for pattern, name in BLOCKS:
        found = re.search(pattern, path)
        if found:
            level = next((group for group in found.groups() if group is not None), None)
            return name.format(int(level) + 1) if level is not None else name
    return FRONT


def flops_of(node: Node, graph: Graph) -> int:
    """Return the operations of one node; views and moves have none."""
    out = graph.tensors[node.outputs[0]]
    if node.kind == "Conv":
        return 2 * out.size * math.prod(graph.tensors[node.inputs[1]].shape[1:])
    if node.kind == "MatMul":
        return 2 * out.size * graph.tensors[node.inputs[0]].shape[-1]
    if node.kind == "Gemm":
        axis = 0 if node.attributes.get("transA") else 1
        return 2 * out.size * graph.tensors[node.inputs[0]].shape[axis]
    if is_view(node, graph):
        return 0
    largest = max((graph.tensors[name].size for name in node.inputs if name), default=0)
    return max(out.size, largest)


def peak_bytes(graph: Graph, kernels: list[Kernel], source: dict[str, str]) -> int:
    """Return the most bytes of kernel results alive at once; graph inputs count, weights do not."""
    last: dict[str, int] = {}
    for step, kernel in enumerate(kernels):
        for name in kernel.reads:
            last[source.get(name, name)] = step
    for name in graph.outputs:
        last[source.get(name, name)] = len(kernels)
    alive = {name: graph.tensors[name].nbytes for name in graph.inputs}
    peak = sum(alive.values())
    for step, kernel in enumerate(kernels):
        alive |= {name: graph.tensors[name].nbytes for name in kernel.writes}
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > step}
    return peak


def _block(
    graph: Graph, nodes: list[Node], kernels: list[Kernel], gpu: Gpu | None, source: Mapping[str, str]
) -> BlockCost:
    weights = {name for node in nodes for name in node.inputs if name in graph.weights}
    return BlockCost(
        flops=sum(flops_of(node, graph) for node in nodes),
        bytes_unfused=sum(_bytes(graph, {*node.inputs, *node.outputs}) for node in nodes if not is_view(node, graph)),
        bytes_fused=sum(bytes_moved(kernel, graph, source) for kernel in kernels),
        weight_bytes=_bytes(graph, weights),
        kernels=len(kernels),
        nodes=len(nodes),
        roofline_ms=None if gpu is None else sum(_milliseconds(graph, kernel, gpu, source) for kernel in kernels),
    )


def _milliseconds(graph: Graph, kernel: Kernel, gpu: Gpu, source: Mapping[str, str]) -> float:
    """Return the larger of a kernel's arithmetic and memory time.

    Dense products of halves run on tensor cores; depthwise convolutions, FP32 and elementwise work do not.
    """
    seconds = 0.0
    for node in kernel.nodes:
        half = graph.tensors[node.inputs[0]].item_bytes == 2 if node.inputs else False
        dense = node.kind in PRODUCTS and not (node.kind == "Conv" and graph.tensors[node.inputs[1]].shape[1] == 1)
        rate = gpu.half_tflops if half and dense else gpu.single_tflops
        seconds += flops_of(node, graph) / (rate * 1e12)
    moved = bytes_moved(kernel, graph, source) / (gpu.bandwidth_gbps * 1e9)
    return 1e3 * max(seconds, moved)


def _bytes(graph: Graph, names: set[str]) -> int:
    return sum(graph.tensors[name].nbytes for name in names if name in graph.tensors)
