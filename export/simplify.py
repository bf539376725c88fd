"""Constants folded, duplicates and dead nodes removed, in an exported graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import no_op_transpose_rule, transpose_transpose_rule

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""The only note of the exporter that is kept on a node: the modules that it comes from."""

AXES = 2
"""Which of a slice's starts, ends, axes and steps are its axes."""


def simplify(model: ir.Model) -> None:
    """Clean the graph in place; its outputs do not change.

    The exporter's own optimiser also tries some forty pattern rewrites on every node, which takes twenty times as
    long on this network and leaves more nodes.
    """
    optimizer.fold_constants(model, onnx_shape_inference=True)
    rewriter.rewrite(model, [transpose_transpose_rule, no_op_transpose_rule])
    join_slices(model)
    for clean in (
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
    ):
        clean(model)
    drop_notes(model)


def join_slices(model: ir.Model) -> None:
    """Cut along several axes by one node: a slice that only another slice reads goes into it."""
    for outer in [node for node in model.graph if node.op_type == "Slice"]:
        inner = outer.inputs[0].producer() if outer.inputs[0] is not None else None
        if inner is None or inner.op_type != "Slice" or len(inner.outputs[0].uses()) > 1:
            continue
        cuts = [_constants(inner), _constants(outer)]
        if not all(cuts) or {*cuts[0][AXES]} & {*cuts[1][AXES]}:
            continue
        outer.replace_input_with(0, inner.inputs[0])
        for index, values in enumerate(map(np.concatenate, zip(*cuts, strict=True)), start=1):
            name = f"{outer.name}_joined_{index}"
            joined = ir.Value(name=name, const_value=ir.tensor(values, name=name))
            model.graph.register_initializer(joined)
            outer.replace_input_with(index, joined)


def _constants(node: ir.Node) -> list[NDArray[np.int64]]:
    """Return a slice's starts, ends, axes and steps; nothing if one of them is not written in the graph."""
    values = [value and ir.convenience.get_const_tensor(value) for value in node.inputs[1:]]
    return [value.numpy() for value in values if value] if len(values) == 4 and all(values) else []


def drop_notes(model: ir.Model) -> None:
    """Remove what the exporter notes on each node (stack traces with file paths), but for its modules."""
    for node in model.graph:
        for key in [key for key in node.metadata_props if key != SCOPES_KEY]:
            del node.metadata_props[key]
