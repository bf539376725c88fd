"""The exported graph: valid, plain, the same function, with a manifest that explains it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from upfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upfusion.export import onnx_export
from upfusion.export.deploy import fix_text
from upfusion.export.onnx_export import ExportOptions, export_onnx, padded
from upfusion.model.decisions import imposing
from upfusion.runtime.errors import ExportError, InputError
from upfusion.runtime.manifest import METADATA_KEY, Manifest, SizeRange, manifest_path, read_manifest
from upfusion.text import stand_in_text

Export = Callable[[ExportOptions], Path]

FIXED = SizeRange(minimum=(60, 90), optimum=(60, 90), maximum=(60, 90))
RANGE = SizeRange(minimum=(32, 48), optimum=(64, 96), maximum=(128, 128))
FP32_LIMIT = 1e-5
"""Largest difference of ONNX Runtime and PyTorch on outputs of order 1, both in float32."""


def run(path: Path, visible: np.ndarray, infrared: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"visible": visible, "infrared": infrared}), strict=True))


def pair_of(batch: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.Generator(np.random.PCG64(height))
    return (
        random.random((batch, 3, height, width), np.float32),
        random.random((batch, 1, height, width), np.float32),
    )


def wanted(checkpoint: Checkpoint, visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
    assert checkpoint.text is not None
    text = torch.from_numpy(checkpoint.text.features)
    with torch.no_grad():
        return checkpoint.model(torch.from_numpy(visible), torch.from_numpy(infrared), text).numpy()


def test_fixed_size_graph_is_the_network(exported: Export, small_checkpoint: Checkpoint):
    path = exported(ExportOptions(sizes=FIXED))
    images = pair_of(1, 64, 96)  # 60x90, padded
    got = run(path, *images)
    assert list(got) == ["fused"]
    np.testing.assert_allclose(got["fused"], wanted(small_checkpoint, *images), atol=FP32_LIMIT)


@pytest.mark.parametrize("size", [(32, 48), (64, 96), (128, 112)])
def test_dynamic_graph_with_a_batch_ranks_per_image(exported: Export, small_checkpoint: Checkpoint, size):
    path = exported(ExportOptions(sizes=RANGE, batch=2))
    images = pair_of(2, *size)
    got = run(path, *images)["fused"]
    np.testing.assert_allclose(got, wanted(small_checkpoint, *images), atol=FP32_LIMIT)


def test_half_precision_graph_with_a_batch_at_another_size(exported: Export, small_checkpoint: Checkpoint):
    """The rewritten form in half, dynamic, two pairs: arithmetic alone differs from the network's."""
    path = exported(ExportOptions(sizes=RANGE, batch=2, precision="fp16", expose_ranks=True))
    images = pair_of(2, 40, 56)
    got = run(path, *images)
    assert got["scpm.order"].shape[0] == 2
    fused = got.pop("fused")
    reference, _ = fix_text(small_checkpoint.model, stand_in_text())
    tensors = tuple(map(torch.from_numpy, images))
    with torch.no_grad(), imposing(reference.network, {name: torch.from_numpy(it) for name, it in got.items()}):
        plain = reference(*tensors).numpy()
    assert 0 < np.abs(fused - plain).mean() < onnx_export.MEAN_LIMITS["fp16"]


def test_exporter_is_silent(small_checkpoint: Checkpoint, tmp_path: Path):
    """Both images name their sides alike; the exporter's warnings about that reach nobody."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sizes = SizeRange(minimum=(16, 16), optimum=(24, 32), maximum=(64, 64))
        export_onnx(small_checkpoint, tmp_path / "plain.onnx", None, ExportOptions(sizes=sizes, rewrites=()))
    assert not [warning for warning in caught if "axis name" in str(warning.message)]
    assert read_manifest(tmp_path / "plain.onnx").rewrites == ()


def test_graph_is_plain(exported: Export):
    model = onnx.load(exported(ExportOptions(sizes=FIXED)))
    types = {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    assert not types & {"If", "Loop", "Scan", "GatherElements", "GatherND", "NonZero"}
    assert not [weight.name for weight in model.graph.initializer if "text_layers" in weight.name]


def test_fp16_graph_computes_in_half_and_decides_in_float(exported: Export, small_checkpoint: Checkpoint):
    path = exported(ExportOptions(sizes=FIXED, precision="fp16"))
    model = onnx.load(path)
    weights = {init.name: init.data_type for init in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    halves = sum(weights.get(node.input[1]) == onnx.TensorProto.FLOAT16 for node in convolutions)
    assert halves > 0.7 * len(convolutions)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    ranked = [node.input[0] for node in model.graph.node if node.op_type == "TopK"]
    assert len(ranked) >= 9  # SCPM, and for each level its order and its attention mask
    assert all(types[name] == onnx.TensorProto.FLOAT for name in ranked)
    got = run(path, *pair_of(1, 64, 96))["fused"]
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    parity = read_manifest(path).parity
    assert 0 < parity["mean_difference"] < onnx_export.MEAN_LIMITS["fp16"]


def test_manifest_explains_the_file(exported: Export, small_checkpoint: Checkpoint):
    path = exported(ExportOptions(sizes=FIXED))
    manifest = read_manifest(path)
    assert manifest.source.sha256 == small_checkpoint.sha256
    assert manifest.source.config["dim"] == 16
    assert manifest.contract.sizes.optimum == (64, 96)
    assert manifest.contract.inputs[0].shape == (1, 3, 64, 96)
    assert manifest.parity["decisions_moved"] == 0
    assert manifest.versions["onnxruntime"] == onnxruntime.__version__
    _, fixed = fix_text(small_checkpoint.model, stand_in_text())
    assert manifest.text.permutations == fixed.permutations
    assert all(gap > 0 for gap in manifest.text.smallest_gaps.values())
    inside = {entry.key: entry.value for entry in onnx.load(path).metadata_props}[METADATA_KEY]
    assert dataclasses.replace(manifest, sha256="") == Manifest.from_json(inside, where="inside")


def test_exposed_ranks_are_the_networks(exported: Export, small_checkpoint: Checkpoint):
    path = exported(ExportOptions(sizes=FIXED, expose_ranks=True))
    images = pair_of(1, 64, 96)
    got = run(path, *images)
    deploy, _ = fix_text(small_checkpoint.model, stand_in_text())
    with torch.no_grad():
        _, decisions = deploy.with_decisions(*map(torch.from_numpy, images))
    assert got.keys() == {"fused", *decisions}
    for name, decision in decisions.items():
        np.testing.assert_array_equal(got[name], decision.numpy(), err_msg=name)


def test_failed_comparison_is_a_failed_export(
    small_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(onnx_export.MAX_LIMITS, "fp32", 0.0)
    monkeypatch.setitem(onnx_export.MEAN_LIMITS, "fp32", 0.0)
    with pytest.raises(ExportError, match="not the network"):
        export_onnx(small_checkpoint, tmp_path / "fusion.onnx", None, ExportOptions(sizes=FIXED))
    assert not list(tmp_path.iterdir())


def test_without_text_the_user_is_told(small_checkpoint: Checkpoint, tmp_path: Path):
    save_checkpoint(small_checkpoint.model, tmp_path / "mute.safetensors", text=None, provenance={})
    with pytest.raises(InputError) as caught:
        export_onnx(load_checkpoint(tmp_path / "mute.safetensors"), tmp_path / "x.onnx", None, ExportOptions())
    assert "upfusion text" in caught.value.hint
    assert not (tmp_path / "x.onnx").exists()


def test_options_that_make_no_graph():
    with pytest.raises(InputError):
        ExportOptions(batch=0)
    with pytest.raises(InputError):
        ExportOptions(sizes=SizeRange(minimum=(64, 64), optimum=(32, 64), maximum=(128, 128)))
    with pytest.raises(InputError):
        ExportOptions(sizes=SizeRange(minimum=(4, 4), optimum=(4, 4), maximum=(4, 4)))
    assert padded((301, 413)) == (304, 416)


def test_manifest_lies_beside_the_graph(exported: Export):
    path = exported(ExportOptions(sizes=FIXED))
    assert manifest_path(path).is_file()


def test_a_folder_in_the_manifests_place_leaves_no_graph(small_checkpoint: Checkpoint, tmp_path: Path):
    (tmp_path / "fusion.onnx.json").mkdir()
    with pytest.raises(InputError, match=r"fusion\.onnx\.json: it is a folder"):
        export_onnx(small_checkpoint, tmp_path / "fusion.onnx", None, ExportOptions(sizes=FIXED))
    assert [path.name for path in tmp_path.iterdir()] == ["fusion.onnx.json"]
