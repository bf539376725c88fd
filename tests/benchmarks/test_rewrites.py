"""One form of the rewrites' benchmark from export to the builder's report, on the tiny network."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rewrites import built, counted, export
from upfusion.checkpoint import load_checkpoint
from upfusion.export.onnx_export import ExportOptions
from upfusion.export.rewrites import DEFAULTS
from upfusion.runtime.manifest import SizeRange
from upfusion.weights import TINY


def test_a_form_is_counted_and_built(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    checkpoint = load_checkpoint(TINY)
    assert checkpoint.text is not None
    size = SizeRange(minimum=(64, 64), optimum=(64, 64), maximum=(64, 64))
    options = ExportOptions(precision="fp16", sizes=size)
    graph = tmp_path / "graph.onnx"
    export(checkpoint.model, checkpoint.text, DEFAULTS["tensorrt"], options, graph)
    cost = counted(graph)
    engine = built(graph, options)
    assert 0 < cost["kernels"] < cost["nodes"]
    # The builder folds some of the small constants, and lays out weights with gaps.
    assert 0.95 * cost["weight_bytes"] < engine["weights_bytes"] < 2 * cost["weight_bytes"]
    assert engine["activation_memory_bytes"] > 0.5 * cost["peak_live_bytes"], "its kernels fuse, but maps must live"
    assert str(engine["builder"]).startswith("tensorrt-rtx 1.")
