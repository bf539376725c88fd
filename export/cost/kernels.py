"""Nodes grouped into the kernels that a compiler can be expected to make of them.

The assumptions, alike for every graph, are what TensorRT documents and what TensorRT-RTX 1.7 was seen to make of five
forms of the base network (``benchmarks/rewrites.py --engines`` has its own list of layers beside this count):

* **Views are free**: reshapes, splits and slices, broadcasts; a transpose that only swaps the last two axes for a
  matrix product, or that names a map's channels last instead of second: convolutions for tensor cores keep their
  maps channels-last whatever the graph calls them; index and shape arithmetic on constants. (Engines copy some of
  them all the same: a third of the values behind a convolution, a product's result whose channels come first.)
* **Elementwise operations join the kernel that makes their input**, one after the other, if that kernel is a
  convolution, a matrix product, a normalisation or other elementwise work, if nothing else needs the value between,
  and if both have the same number of elements. Further operands are read. An operation on one half of a
  convolution's result does not join it: the two halves come from different tiles.
* **Nothing is computed twice**: a value that several kernels need is written once, in its own type.
* **Convolutions and matrix products** read each operand once and write their result once.
* **Reductions join the elementwise kernel that makes their input and end it**, for their result needs all of their
  input; only work on the reduced values follows in it. A short row (:data:`SHORT`) fits where it is reduced, so work
  on the row goes on, up to a second reduction: a layer norm spelled out in primitive nodes is two kernels with the
  deviations written between them. A layer norm or softmax that is one node is one kernel: read once, write once.
* **Transposes** join elementwise or norm kernels beside them (another index); elsewhere they read and write once.
* **Casts** join what makes the value, and a cast to a smaller type always does; one to a larger type does not join a
  product, whose result is written in the narrow type.
* **Gather, TopK, resize, concatenation, pixel shuffle** read what they take and write once.

Bytes without fusion count every node that is not a view as reading its operands and writing its results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
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

SHORT = 4096
"""Elements of a row that a group of threads can hold while it is reduced."""

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
    for node in graph.nodes:
        if not is_view(node, graph) and not _of_constants(node, graph, grouping.source):
            grouping.add(node)
    _settle(grouping.kernels, graph, grouping.source)
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

    def add(self, node: Node) -> None:
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
                kernel.reads.add(self._region.get(name, name))
        for output in node.outputs:
            self._maker[output] = home

    def _home(self, node: Node) -> int | None:
        """Return the kernel that a node joins, None for a new one."""
        if node.kind in REDUCTIONS:
            return self._before_reduction(node)
        if is_elementwise(node) or node.kind in COPIES:
            return self._after_producer(node)
        return self._after_copy(node) if node.kind in NORMS else None

    def _before_reduction(self, node: Node) -> int | None:
        """Return the kernel of elementwise work, with at most one short reduction in it, that a reduction ends."""
        home = self._maker.get(self.source.get(node.inputs[0], node.inputs[0]))
        if home is None:
            return None
        kernel = self.kernels[home]
        plain = all(is_elementwise(member) or member.kind in COPIES | REDUCTIONS for member in kernel.nodes)
        first = not self._reductions(kernel)
        return home if plain and (first or (self._goes_on(kernel) and self._row(node) <= SHORT)) else None

    def _after_producer(self, node: Node) -> int | None:
        """Return the kernel that an elementwise node or a copy joins: the latest whose result it can take over."""
        homes = [maker for memory, maker in self._made_operands(node) if self._joins(node, memory)]
        return max(homes) if homes else self._over_row(node)

    def _over_row(self, node: Node) -> int | None:
        """Return the kernel of a short reduction whose result is applied to the row that it reads."""
        for name in node.inputs:
            home = self._maker.get(self.source.get(name, name))
            if home is None or not self._goes_on(self.kernels[home]):
                continue
            if all(
                self._region.get(other, other) in self.kernels[home].reads for other in node.inputs if other != name
            ):
                return home
        return None

    def _joins(self, node: Node, memory: str) -> bool:
        """Whether an elementwise node or a copy can go on with a value in the kernel that makes it."""
        kernel = self.kernels[self._maker[memory]]
        if memory in self._graph.outputs or kernel.leader.kind in MOVES:
            return False
        if kernel.leader.kind in PRODUCTS and (node.kind == "Transpose" or _widens(node, self._graph)):
            return False
        if self._reductions(kernel) and self._graph.tensors[node.outputs[0]].size > self._reduced_size(kernel):
            return self._goes_on(kernel)
        return all(reader is node or reader in kernel.nodes for reader in self.readers[memory])

    def _reductions(self, kernel: Kernel) -> list[Node]:
        return [member for member in kernel.nodes if member.kind in REDUCTIONS]

    def _reduced_size(self, kernel: Kernel) -> int:
        return min(self._graph.tensors[member.outputs[0]].size for member in self._reductions(kernel))

    def _row(self, reduction: Node) -> int:
        """Return how many elements become one."""
        tensors = self._graph.tensors
        return tensors[reduction.inputs[0]].size // max(tensors[reduction.outputs[0]].size, 1)

    def _goes_on(self, kernel: Kernel) -> bool:
        """Whether work on a row can follow its reduction."""
        reductions = self._reductions(kernel)
        return len(reductions) == 1 and self._row(reductions[0]) <= SHORT

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


def _widens(node: Node, graph: Graph) -> bool:
    """Whether a node is a cast to a larger type."""
    return node.kind == "Cast" and graph.tensors[node.outputs[0]].item_bytes > graph.tensors[node.inputs[0]].item_bytes


def _settle(kernels: list[Kernel], graph: Graph, source: Mapping[str, str]) -> None:
    """Fill in what each kernel writes: results that another kernel or the caller reads."""
    needed = {source.get(name, name) for name in graph.outputs}
    for kernel in kernels:
        inside = {output for node in kernel.nodes for output in node.outputs}
        kernel.reads = {region for region in kernel.reads if source.get(region, region) not in inside}
        needed |= {source.get(region, region) for region in kernel.reads}
    for kernel in kernels:
        kernel.writes = {output for node in kernel.nodes for output in node.outputs} & needed
