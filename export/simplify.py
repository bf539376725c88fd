"""Constants folded, duplicates and dead nodes removed, in an exported graph."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer


def simplify(model: ir.Model) -> None:
    """Clean the graph in place; its outputs do not change.

    The exporter's own optimiser also tries some forty pattern rewrites on every node, which takes twenty times as
    long on this network and leaves more nodes.
    """
    optimizer.fold_constants(model, onnx_shape_inference=True)
    for clean in (
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(),
        common.DeduplicateInitializersPass(),
    ):
        clean(model)
