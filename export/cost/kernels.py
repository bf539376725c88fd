"""Nodes grouped into the kernels that a compiler can be expected to make of them.

The assumptions, alike for every graph:

* **Views are free**: reshapes, splits and slices, broadcasts; a transpose that only swaps the last two axes for a
  matrix product, or that names a map's channels last instead of second: convolutions for tensor cores keep their
  maps channels-last whatever the graph calls them; index and shape arithmetic on constants.
* **Elementwise operations join the kernel that makes their input**, one after the other, if that kernel is a
  convolution, a matrix product, a normalisation or other elementwise work, if nothing else needs the value between,
  and if both have the same number of elements. Further operands are read. An operation on one half of a
  convolution's result does not join it: the two halves come from different tiles.
* **Convolutions and matrix products** read each operand once and write their result once.
* **Reductions end a kernel**, for their result needs all of their input; only work on the reduced values follows in
  it. Elementwise work before a reduction is done as it reads, and cheap work with several readers (one operand of full
  size) is done again by each, so that nothing is written for it. A layer norm or softmax that is one node is
  one kernel: read once, write once. This is what TensorRT documents; a norm spelled out in primitive nodes is
  a kernel per reduction.
* **Transposes** join elementwise or norm kernels beside them (another index); elsewhere they read and write once.
* **Casts** join whatever makes or reads the value, products included: TensorRT documents casts around a product as the
  way to ask for sums in FP32, and reads the narrow type. A cast to a smaller type is done by whoever makes the value.
* **Gather, TopK, resize, concatenation, pixel shuffle** read what they take and write once.

Bytes without fusion count every node that is not a view as reading its operands and writing its results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from upfusion.export.cost.graph import Graph, Node

VIEWS = frozenset(
    """
    Reshape Squeeze Unsqueeze Flatten Identity Split Slice Expand Shape Size Constant ConstantOfShape
    Range
    """.split()  # noqa: SIM905
)
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
REDUCTIONS = frozenset(
    """
    ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ArgMax GlobalAveragePool
    """.split()  # noqa: SIM905
)
NORMS = frozenset({"LayerNormalization", "Softmax", "InstanceNormalization", "GroupNormalization", "LpNormalization"})
COPIES = frozenset({"Transpose", "Cast"})
MOVES = frozenset(
    """
    Gather GatherElements GatherND ScatterElements ScatterND TopK Resize Concat DepthToSpace
    SpaceToDepth Pad Tile CumSum OneHot Trilu Einsum NonZero AveragePool MaxPool
    """.split()  # noqa: SIM905
)

LAYOUTS = ([0, 2, 3, 1], [0, 3, 1, 2])
"""Permutations from channels second to channels last, and back."""


@dataclass(slots=True)
class Kernel:
    """Nodes that run as one."""

    nodes: list[Node] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    """Names of regions: whole results, or parts of them that a split or a slice names."""
    writes: set[str] = field(default_factory=set)
    """Names of whole results."""

    @property
    def leader(self) -> Node:
        """The node that names the kernel: its product, norm or reduction, else its first."""
        heavy = PRODUCTS | REDUCTIONS | NORMS | MOVES
        return next((node for node in self.nodes if node.kind in heavy), self.nodes[0])


def is_view(node: Node, graph: Graph) -> bool:
    """Whether a node moves nothing."""
    if node.kind in VIEWS:
        return True
    if node.kind == "Transpose":
        order = node.attributes.get("perm")
        if isinstance(order, list | tuple) and len(order) >= 2:
            swapped = [*range(len(order) - 2), len(order) - 1, len(order) - 2]
            small = graph.tensors[node.inputs[0]]
            moved = [axis for axis in order if small.shape[axis] != 1]
            return list(order) in (swapped, *LAYOUTS) or moved == sorted(moved)
    return False


def is_elementwise(node: Node) -> bool:
    """Whether each output element depends on one element of each input (after broadcasting)."""
    return node.kind not in VIEWS | PRODUCTS | REDUCTIONS | NORMS | MOVES | COPIES


def sources_of(graph: Graph) -> dict[str, str]:
    """Return for every tensor the one whose memory it is: itself, or what it is a view of."""
    source: dict[str, str] = {}
    for node in graph.nodes:
        for output in node.outputs:
            own = not is_view(node, graph) or not node.inputs
            source[output] = output if own else source.get(node.inputs[0], node.inputs[0])
    return source


def regions_of(graph: Graph) -> dict[str, str]:
    """Return for every tensor the part of a memory that it shows: what the last split or slice names, or all."""
    region: dict[str, str] = {}
    for node in graph.nodes:
        for output in node.outputs:
            own = not is_view(node, graph) or not node.inputs or node.kind in ("Split", "Slice")
            region[output] = output if own else region.get(node.inputs[0], node.inputs[0])
    return region


def bytes_moved(kernel: Kernel, graph: Graph, source: Mapping[str, str]) -> int:
    """Return what a kernel reads and writes; parts of one memory count once each, and never more than all of it."""
    read: dict[str, int] = defaultdict(int)
    for region in kernel.reads:
        read[source.get(region, region)] += graph.tensors[region].nbytes
    inward = sum(min(size, graph.tensors[memory].nbytes) for memory, size in read.items())
    return inward + sum(graph.tensors[name].nbytes for name in kernel.writes)


def kernels_of(graph: Graph) -> list[Kernel]:
    """Group the nodes, in their order, by the rules of this module's docstring."""
    grouping = _Grouping(graph)
    cheap = _recomputable(graph, grouping.readers)
    for node in graph.nodes:
        if not is_view(node, graph) and not _of_constants(node, graph, grouping.source):
            grouping.add(node, cheap)
    _settle(grouping.kernels, graph, grouping.source, cheap)
    return [kernel for kernel in grouping.kernels if kernel.writes]


class _Grouping:
    """The kernels so far, and who makes and who reads each tensor."""

    def __init__(self, graph: Graph) -> None:
        self.kernels: list[Kernel] = []
        self.source = sources_of(graph)
        self.readers = _readers(graph, self.source)
        self._graph = graph
        self._region = regions_of(graph)
        self._maker: dict[str, int] = {}  # tensor -> index of the kernel that makes it

    def add(self, node: Node, cheap: Mapping[str, Node]) -> None:
        """Put the next node into the kernel it joins, or into a new one."""
        home = self._home(node)
        if home is None:
            self.kernels.append(Kernel())
            home = len(self.kernels) - 1
        kernel = self.kernels[home]
        kernel.nodes.append(node)
        made = {output for member in kernel.nodes for output in member.outputs}
        for name in node.inputs:
            if name and self.source.get(name, name) not in made:
                kernel.reads |= _reads_through(name, cheap, self.source, self._region)
        for output in node.outputs:
            self._maker[output] = home

    def _home(self, node: Node) -> int | None:
        """Return the kernel that a node joins, None for a new one."""
        if is_elementwise(node) or node.kind in COPIES:
            return self._after_producer(node)
        return self._after_copy(node) if node.kind in NORMS else None

    def _after_producer(self, node: Node) -> int | None:
        """Return the kernel that an elementwise node or a copy joins: the latest whose result it alone reads."""
        homes = []
        for memory, maker in self._made_operands(node):
            kernel = self.kernels[maker]
            if memory in self._graph.outputs:
                continue
            if any(reader is not node and reader not in kernel.nodes for reader in self.readers[memory]):
                continue
            if kernel.leader.kind in MOVES:
                continue
            if node.kind == "Transpose" and kernel.leader.kind in PRODUCTS:
                continue
            homes.append(maker)
        return max(homes, default=None)

    def _after_copy(self, node: Node) -> int | None:
        """Return the kernel of copies that a norm joins: it then reads in another order, or another type."""
        for memory, maker in self._made_operands(node):
            only_copies = all(member.kind in COPIES or is_elementwise(member) for member in self.kernels[maker].nodes)
            if only_copies and all(reader is node for reader in self.readers[memory]):
                return maker
        return None

    def _made_operands(self, node: Node) -> Iterator[tuple[str, int]]:
        """Yield the memory and the kernel of each operand that a kernel made and that is as large as the result."""
        size = self._graph.tensors[node.outputs[0]].size
        for name in node.inputs:
            memory = self.source.get(name, name)
            if name and memory in self._maker and self._graph.tensors[memory].size == size:
                yield memory, self._maker[memory]


def _of_constants(node: Node, graph: Graph, source: dict[str, str]) -> bool:
    """Whether a node computes shapes or indices: every operand a constant or a shape."""
    return all(
        not name or name in graph.weights or source.get(name, name) in graph.weights or graph.tensors[name].size <= 8
        for name in node.inputs
    ) and all(graph.tensors[name].size <= 8 for name in node.outputs if name)


def _readers(graph: Graph, source: dict[str, str]) -> dict[str, list[Node]]:
    """Return who reads each tensor's memory, views looked through."""
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if not is_view(node, graph):
            for name in dict.fromkeys(node.inputs):
                if name:
                    readers[source.get(name, name)].append(node)
    return readers


def _recomputable(graph: Graph, readers: dict[str, list[Node]]) -> dict[str, Node]:
    """Return elementwise results and copies that every reader makes again for itself, by name.

    These are operands of reductions and norms alone, and those with several readers that need only one operand of
    full size, so that making them again reads no more than reading them would.
    """
    cheap: dict[str, Node] = {}
    for node in graph.nodes:
        if is_view(node, graph) or not (is_elementwise(node) or node.kind in COPIES):
            continue
        output = node.outputs[0]
        users = readers.get(output, [])
        if not users or output in graph.outputs or _narrows(node, graph):
            continue
        size = graph.tensors[output].size
        full = [name for name in node.inputs if name and graph.tensors[name].size == size]
        ends = all(user.kind in REDUCTIONS | NORMS for user in users)
        light = len(users) > 1 and len(full) == 1 and all(_takes_prologue(user) for user in users)
        widens = node.kind == "Cast" and all(_takes_prologue(user) or user.kind in PRODUCTS for user in users)
        if ends or light or widens:
            cheap[output] = node
    return cheap


def _narrows(node: Node, graph: Graph) -> bool:
    """Whether a node is a cast to a smaller type: whoever makes the value writes it in that type."""
    wide, narrow = (graph.tensors[name].item_bytes for name in (node.inputs[0], node.outputs[0]))
    return node.kind == "Cast" and narrow < wide


def _takes_prologue(node: Node) -> bool:
    """Whether elementwise work can be done on a node's operands as it reads them."""
    return is_elementwise(node) or node.kind in REDUCTIONS | NORMS | COPIES


def _reads_through(
    name: str, cheap: Mapping[str, Node], source: Mapping[str, str], region: Mapping[str, str]
) -> set[str]:
    """Return what must be read to have a tensor: its region, or the operands that it is made again from."""
    memory = source.get(name, name)
    if memory not in cheap:
        return {region.get(name, name)}
    return {
        read for operand in cheap[memory].inputs if operand for read in _reads_through(operand, cheap, source, region)
    }


def _settle(kernels: list[Kernel], graph: Graph, source: Mapping[str, str], cheap: Collection[str]) -> None:
    """Fill in what each kernel writes: results that another kernel or the caller reads."""
    needed = {source.get(name, name) for name in graph.outputs}
    recomputed = set(cheap)
    for kernel in kernels:
        inside = {output for node in kernel.nodes for output in node.outputs}
        kernel.reads = {region for region in kernel.reads if source.get(region, region) not in inside}
        if not inside <= recomputed:
            needed |= {source.get(region, region) for region in kernel.reads}
    for kernel in kernels:
        inside = {output for node in kernel.nodes for output in node.outputs}
        kernel.writes = (inside & needed) - recomputed
