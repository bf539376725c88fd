"""A half-precision ONNX graph rewritten so that a CPU computes what a GPU would store.

ONNX Runtime's CPU provider has no half kernels for most operations. It runs them in float32 and removes the casts
that it put in between, so that a chain of half operations keeps float32 values on every edge: no rounding, no
overflow (``tests/export/test_half_graph.py`` shows it). Casts that the graph itself contains stay. So the emulation
makes the graph float32 and writes a cast to half and back behind every operation whose result was half: float32
sums inside an operation, one rounding of its result, as a GPU kernel that accumulates in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT

MOVES = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
        "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""These move values and compute nothing: half in, the same half out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedGraph:
    """The emulation and the names of what it adds."""

    model: onnx.ModelProto
    extremes: dict[str, tuple[str, str]]
    """For each edge that is rounded, the outputs that hold its largest and smallest value before rounding."""


def emulate_half(model: onnx.ModelProto, decisions: tuple[str, ...] = (), *, ranges: bool = True) -> EmulatedGraph:
    """Return a float32 graph that rounds to half wherever the given graph stores half.

    Args:
        model: with value types that shape inference can find; not changed.
        decisions: inner values to add as outputs, where the graph has them.
        ranges: also find the extremes of every rounded edge, which costs two passes over each.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    halves = {
        value.name
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.tensor_type.elem_type == HALF
    }
    halves |= {tensor.name for tensor in graph.initializer if tensor.data_type == HALF}
    widened = [_widened(tensor) for tensor in graph.initializer]
    nodes: list[onnx.NodeProto] = []
    extremes: dict[str, tuple[str, str]] = {}
    for node in graph.node:
        nodes.append(_float_node(node))
        if node.op_type in MOVES or node.op_type == "Constant":
            continue
        for index, name in enumerate(node.output):
            if name in halves:
                wide = f"{name}.wide"
                nodes[-1].output[index] = wide
                nodes += [
                    helper.make_node("Cast", [wide], [f"{name}.half"], to=HALF),
                    helper.make_node("Cast", [f"{name}.half"], [name], to=FLOAT),
                ]
                if ranges:
                    extremes[name] = (f"{name}.max", f"{name}.min")
                    nodes += [
                        helper.make_node(kind, [wide], [extreme], keepdims=0)
                        for kind, extreme in zip(("ReduceMax", "ReduceMin"), extremes[name], strict=True)
                    ]
    emulated = onnx.ModelProto()
    emulated.CopyFrom(inferred)
    del emulated.graph.node[:], emulated.graph.initializer[:], emulated.graph.value_info[:]
    emulated.graph.node.extend(nodes)
    emulated.graph.initializer.extend(widened)
    present = {output.name for output in emulated.graph.output}
    made = {name for node in nodes for name in node.output}
    types = {value.name: value for value in graph.value_info}
    for name in decisions:
        if name in made and name not in present:
            emulated.graph.output.append(types.get(name) or helper.make_empty_tensor_value_info(name))
    for value in (*emulated.graph.input, *emulated.graph.output):
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FLOAT
    for names in extremes.values():
        emulated.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, ()) for name in names)
    return EmulatedGraph(model=emulated, extremes=extremes)


def _float_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of the node that knows no half: casts to half become casts to float32, constants are widened."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if copy.op_type == "Cast" and attribute.name == "to" and attribute.i == HALF:
            attribute.i = FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_widened(attribute.t))
    return copy


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != HALF:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
