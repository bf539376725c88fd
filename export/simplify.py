"""Constants folded, duplicates and dead nodes removed, in an exported graph."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""The only note of the exporter that is kept on a node: the modules that it comes from."""


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
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
    ):
        clean(model)
    drop_notes(model)


def drop_notes(model: ir.Model) -> None:
    """Remove what the exporter notes on each node (stack traces with file paths), but for its modules."""
    for node in model.graph:
        for key in [key for key in node.metadata_props if key != SCOPES_KEY]:
            del node.metadata_props[key]
