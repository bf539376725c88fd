"""Image graphs: uint8 in, uint8 out, the host's path to the level."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from upfusion.checkpoint import Checkpoint
from upfusion.cli.app import app
from upfusion.export import onnx_export
from upfusion.export.builder import engine_from_onnx
from upfusion.export.image_edges import Channels, Color, ImageEdges, reflect_padded
from upfusion.export.onnx_export import ExportOptions, export_onnx
from upfusion.runtime import load
from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions
from upfusion.runtime.errors import ExportError, InputError
from upfusion.runtime.images import finish, merge_chroma, prepare
from upfusion.runtime.manifest import SizeRange, read_manifest

Export = Callable[[ExportOptions], Path]

ODD = SizeRange(minimum=(37, 51), optimum=(37, 51), maximum=(37, 51))
RANGE = SizeRange(minimum=(17, 23), optimum=(40, 56), maximum=(64, 72))
CPU = OnnxRuntimeOptions(threads=1, spin=False)


def pair_of(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth waves with some noise: every level, and both ends."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(random.uniform(0.05, 0.4) * rows + random.uniform(0.05, 0.4) * columns + k) for k in range(4)]
    images = (np.stack(waves, -1) * 140 + 128 + random.normal(0, 8, (height, width, 4))).clip(0, 255).astype(np.uint8)
    return images[..., :3], images[..., 3]


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class _Stub(torch.nn.Module):
    """In place of the network: an affine map of both planes that leaves 0..1 at both ends."""

    network = torch.nn.Module()

    def with_decisions(self, visible: torch.Tensor, infrared: torch.Tensor):
        return 1.4 * (0.5 * visible + 0.5 * infrared) - 0.2, {}


@pytest.mark.parametrize(
    ("size", "color", "channels"),
    [((37, 51), "ycbcr", "rgb"), ((8, 9), "ycbcr", "bgr"), ((24, 32), "gray", "bgr"), ((15, 22), "gray", "rgb")],
)
def test_edges_are_the_hosts_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], color: Color, channels: Channels
):
    monkeypatch.setattr("upfusion.export.image_edges.decision_points", lambda _: ())
    stub = _Stub()
    pairs = [pair_of(*size, seed) for seed in range(3)]
    visible, infrared = (torch.from_numpy(np.stack(images)) for images in zip(*pairs, strict=True))
    given = visible if channels == "rgb" else visible.flip(-1)
    got = ImageEdges(stub, color, channels)(given, infrared)  # type: ignore[arg-type]
    fused, luma, plane = got if color == "ycbcr" else (got[0], *got)
    assert plane.min() < 0 < 1 < plane.max()
    for index, (first, second) in enumerate(pairs):
        planes = [torch.from_numpy(tensor) for tensor in prepare(first, second)]
        weights = torch.tensor([0.299, 0.587, 0.114])
        red, green, blue = (planes[0][:, i : i + 1] * weights[i] for i in range(3))
        on_host, _ = stub.with_decisions(red + green + blue, planes[1])
        assert torch.equal(plane[index], on_host[0])
        gray = finish(on_host.numpy()[0, 0], *size)
        np.testing.assert_array_equal(luma[index], gray)
        if color == "ycbcr":
            image = fused[index].numpy()
            np.testing.assert_array_equal(image if channels == "rgb" else image[..., ::-1], merge_chroma(first, gray))


@pytest.mark.parametrize("side", range(8, 18))
def test_padding_is_the_hosts(side: int):
    plane = torch.rand(2, 1, side, 8)
    missing = -side % 8
    np.testing.assert_array_equal(
        reflect_padded(plane), np.pad(plane, ((0, 0), (0, 0), (0, missing), (0, 0)), mode="reflect")
    )


def test_graph_gives_what_the_host_gives(exported: Export):
    """An odd fixed size in colour: through the runtime, beside the float graph of the same network."""
    images = exported(ExportOptions(sizes=ODD, io="image"))
    planes = exported(ExportOptions(sizes=ODD))
    pair = pair_of(37, 51)
    with load(images, device="cpu", options=CPU) as ours, load(planes, device="cpu", options=CPU) as host:
        for color in ("auto", "gray", "ycbcr"):
            np.testing.assert_array_equal(ours(*pair, color), host(*pair, color), err_msg=color)
        gray = pair[0][..., 1]
        np.testing.assert_array_equal(ours(gray, pair[1]), host(gray, pair[1]))
        with pytest.raises(InputError, match="8-bit images") as caught:
            ours(pair[0].astype(np.uint16), pair[1])
        assert "--io tensor" in caught.value.hint
    manifest = read_manifest(images)
    assert manifest.parity["edge_levels"] == 0
    assert manifest.contract.sizes == ODD
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.contract.inputs] == [
        ("visible", "uint8", (1, 37, 51, 3)),
        ("infrared", "uint8", (1, 37, 51)),
    ]
    assert {spec.name: spec.shape for spec in manifest.contract.outputs} == {
        "fused": (1, 37, 51, 3),
        "luma": (1, 37, 51),
    }
    assert [output.name for output in onnx.load(images).graph.output] == ["fused", "luma"]


def test_dynamic_half_precision_batch(exported: Export, small_checkpoint: Checkpoint):
    """Any size, two pairs, BGR, FP16: every pair as it is alone, and the host's edges around the same network."""
    path = exported(ExportOptions(sizes=RANGE, batch=2, precision="fp16", io="image", channels="bgr"))
    planes = exported(ExportOptions(sizes=RANGE, batch=2, precision="fp16"))
    contract = read_manifest(path).contract
    assert contract.channels == "bgr"
    assert "BGR" in contract.inputs[0].meaning
    session, host = session_of(path), session_of(planes)
    for size in [(17, 23), (40, 56), (61, 72)]:
        pairs = [pair_of(*size, seed) for seed in (1, 2)]
        visible, infrared = (np.stack(images) for images in zip(*pairs, strict=True))
        fused, luma = session.run(
            ["fused", "luma"], {"visible": np.ascontiguousarray(visible[..., ::-1]), "infrared": infrared}
        )
        tensors = [np.concatenate(parts) for parts in zip(*itertools.starmap(prepare, pairs), strict=True)]
        (plane,) = host.run(["fused"], dict(zip(("visible", "infrared"), tensors, strict=True)))
        for index in range(2):
            gray = finish(plane[index, 0].copy(), *size)
            np.testing.assert_array_equal(luma[index], gray)
            np.testing.assert_array_equal(fused[index][..., ::-1], merge_chroma(visible[index], gray))


def test_gray_graph_exposes_its_ranks(exported: Export):
    path = exported(ExportOptions(sizes=ODD, io="image", color="gray", expose_ranks=True))
    outputs = [output.name for output in onnx.load(path).graph.output]
    assert outputs[:2] == ["fused", "scpm.order"]
    assert read_manifest(path).contract.outputs[0].shape == (1, 37, 51)
    pair = pair_of(37, 51)
    with load(path, device="cpu", options=CPU) as fuse:
        assert fuse(*pair, "gray").shape == (37, 51)
        assert fuse(*pair).shape == (37, 51, 3)  # the host puts the chroma back


def test_wrong_edges_are_a_failed_export(small_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_export, "EDGE_LIMIT", -1)
    with pytest.raises(ExportError, match="uint8 images differ"):
        export_onnx(small_checkpoint, tmp_path / "x.onnx", None, ExportOptions(sizes=ODD, io="image"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(sizes=ODD, io="image"),
        ExportOptions(sizes=RANGE, batch=2, precision="fp16", io="image", channels="bgr"),
    ],
    ids=["fixed", "dynamic"],
)
def test_engines_build(exported: Export, tmp_path: Path, options: ExportOptions):
    """TensorRT-RTX takes uint8 at the edges, the reflection and the varying sizes; nothing runs on a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    manifest = engine_from_onnx(exported(options), tmp_path / "small.engine")
    assert manifest.build is not None
    assert manifest.contract.io == "image"
    assert (tmp_path / "small.engine").stat().st_size > 10_000


def test_options_of_images_are_refused_for_planes(small_checkpoint: Checkpoint, tmp_path: Path):
    for option in (("--channels", "bgr"), ("--color", "gray")):
        with pytest.raises(InputError, match="are for --io image"):
            CliRunner().invoke(
                app,
                ["export", str(small_checkpoint.path), "-o", str(tmp_path / "x.onnx"), "--io", "tensor", *option],
                catch_exceptions=False,
            )
