"""Decisions as inputs: a graph that computes with what another graph decided."""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from upfusion.runtime.manifest import TensorSpec

INDICES_MEANING = "channel indices, best first"
MASK_MEANING = "true where an attention logit stays"


def take_decisions(model: ir.Model, names: Collection[str]) -> None:
    """Make the named outputs inputs of the same name, shape and type; what only served to make them goes.

    Everything that ranks (the ConvNeXt trunk, squeeze branches, TopK) has no other reader, so the graph is the
    dynamic one from each decision on, node for node.
    """
    graph = model.graph
    for output in [output for output in graph.outputs if output.name in names]:
        given = ir.Value(name=output.name, shape=output.shape, type=output.type)
        output.name = f"{given.name}.own"
        graph.outputs.remove(output)
        output.replace_all_uses_with(given)
        assert given.uses(), f"nothing reads {given.name}: the forward pass goes around its decision point"
        graph.inputs.append(given)
    common.RemoveUnusedNodesPass()(model)


def decision_specs(graph: onnx.ModelProto, names: Collection[str]) -> tuple[TensorSpec, ...]:
    """Return the specifications of the named inputs or outputs, in the graph's order."""
    specs = []
    for value in (*graph.graph.input, *graph.graph.output):
        if value.name in names:
            tensor = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            specs.append(
                TensorSpec(
                    name=value.name,
                    dtype=dtype,
                    shape=tuple(side.dim_value for side in tensor.shape.dim),
                    meaning=MASK_MEANING if dtype == "bool" else INDICES_MEANING,
                )
            )
    return tuple(specs)
