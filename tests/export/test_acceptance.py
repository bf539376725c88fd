"""The gate's verdict on artifacts that are wrong in known ways, and on a real network through ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import typer
from onnx import TensorProto, helper
from typer.testing import CliRunner

from upfusion.checkpoint import Checkpoint
from upfusion.cli.accept import accept
from upfusion.export.acceptance import AcceptanceReport, Limits, Subject, judge, record_acceptance
from upfusion.export.onnx_export import ExportOptions
from upfusion.export.reference import reference_for
from upfusion.runtime.artifact import open_backend
from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.manifest import (
    Contract,
    Manifest,
    SizeRange,
    Source,
    TensorSpec,
    TextRecord,
    manifest_path,
    read_manifest,
)
from upfusion.runtime.pairs import Pair, find_pairs

SIZE = (48, 64)
Planes = npt.NDArray[np.float32]
Write = Callable[..., Path]


class Computed:
    """A backend that computes the fused plane, and further outputs, with numpy."""

    device = "numpy"

    def __init__(self, change: Callable[[Planes], Any] = lambda plane: plane, **outputs: Any) -> None:
        self._change = change
        self._outputs = {name.replace("_", "."): np.asarray(value) for name, value in outputs.items()}

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        plane = (inputs["visible"].mean(1, keepdims=True) + inputs["infrared"]) / 2
        return {"fused": self._change(plane), **self._outputs}

    def close(self) -> None: ...


def contract() -> Contract:
    def plane(name: str, channels: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=(1, channels, *SIZE), meaning="0..1")

    return Contract(
        io="tensor",
        inputs=(plane("visible", 3), plane("infrared", 1)),
        outputs=(plane("fused", 1),),
        batch=1,
        sizes=SizeRange(minimum=SIZE, optimum=SIZE, maximum=SIZE),
    )


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Two gray pairs: one textured, one black in its left half."""
    generator = np.random.default_rng(3)
    for name in ("one", "two"):
        for folder in ("visible", "infrared"):
            image = 2 * generator.integers(20, 100, SIZE, dtype=np.uint8)  # even, so that no mean lies half-way
            if name == "two":
                image[:, : SIZE[1] // 2] = 0
            (tmp_path / folder).mkdir(exist_ok=True)
            assert cv2.imwrite(str(tmp_path / folder / f"{name}.png"), image)
    return find_pairs(tmp_path / "visible", tmp_path / "infrared")


def verdict_on(backend: Computed, pairs: list[Pair], **options: Any) -> AcceptanceReport:
    subject, right = (
        Subject(name=name, backend=b, contract=contract())
        for name, b in (("artifact", backend), ("reference", options.pop("reference", Computed())))
    )
    return judge(subject, right, "0" * 64, pairs, options.pop("limits", Limits()), **options)


def test_the_same_images_are_accepted(pairs: list[Pair]) -> None:
    seen: list[Pair] = []
    report = verdict_on(Computed(), pairs, done=seen.append)
    assert report.verdict == "accepted"
    assert report.worst.psnr_db is None
    assert report.worst.max_levels == 0
    assert report.worst.ssim == 1.0
    assert seen == pairs
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_shift_of_one_level_is_48_db(pairs: list[Pair]) -> None:
    shifted = Computed(lambda plane: plane + np.float32(1 / 255))
    report = verdict_on(shifted, pairs)
    assert report.verdict == "rejected"
    assert "2 of 2 pairs are below 50 dB" in report.reasons[0]
    assert report.worst.psnr_db == pytest.approx(20 * math.log10(255))
    assert report.worst.shift_levels == 1
    assert verdict_on(shifted, pairs, limits=Limits(psnr_db=47)).verdict == "accepted"


def test_one_bad_pair_is_enough_and_is_named(pairs: list[Pair]) -> None:
    def spoil_textured(plane: Planes) -> Planes:
        return plane if plane.min() == 0 else plane * np.float32(0.9)

    report = verdict_on(Computed(spoil_textured), pairs)
    assert report.worst.name == "one"
    assert "1 of 2 pairs are below 50 dB; worst one" in report.reasons[0]


def test_an_image_that_is_not_finite(pairs: list[Pair]) -> None:
    def overflow(plane: Planes) -> Planes:
        plane = plane.copy()
        plane[0, 0, 5, 7:9] = np.nan, np.inf
        return plane

    report = verdict_on(Computed(overflow), pairs)
    assert report.reasons[0] == "pair one: the image is not finite in 2 of its values"
    assert report.worst.max_levels is None
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_reference_that_is_not_finite_is_an_error(pairs: list[Pair]) -> None:
    with pytest.raises(ArtifactError, match=r"pair one: .*NaN"):
        verdict_on(Computed(), pairs, reference=Computed(lambda plane: plane * np.float32(np.nan)))


@pytest.mark.parametrize(
    ("change", "what"), [(lambda plane: plane * 0, "black"), (lambda plane: plane * 0 + np.float32(0.5), "flat")]
)
def test_an_image_without_a_picture(pairs: list[Pair], change: Callable[[Planes], Planes], what: str) -> None:
    report = verdict_on(Computed(change), pairs, limits=Limits(psnr_db=0))
    assert report.reasons == tuple(f"pair {pair.name}: the image is {what}" for pair in pairs)


def test_a_flat_image_is_right_where_the_reference_is_flat(pairs: list[Pair]) -> None:
    flat = Computed(lambda plane: plane * 0)
    assert verdict_on(flat, pairs, reference=flat).verdict == "accepted"


def test_black_pixels_that_became_one_are_reported_apart(pairs: list[Pair]) -> None:
    def lift(plane: Planes) -> Planes:
        return np.where(plane == 0, np.float32(1 / 255), plane)

    report = verdict_on(Computed(lift), pairs, limits=Limits(psnr_db=48), metrics=["SSIM", "SD"])
    textured, half_black = report.pairs
    assert (textured.black_to_one, half_black.black_to_one) == (0, SIZE[0] * SIZE[1] // 2)
    assert half_black.ssim is not None
    assert half_black.ssim < 0.999
    assert half_black.ssim_black_kept == 1.0
    change = half_black.metrics["SSIM"]
    assert change.black_kept == change.reference != change.artifact
    assert set(report.metric_means()) == {"SSIM", "SD"}
    assert report.verdict == "accepted", "one level on half of the image is 51 dB"


def test_decisions_that_moved_are_counted(pairs: list[Pair]) -> None:
    reference = Computed(scpm_order=[[0, 1, 2, 3]], tcpm1_keep=np.ones((1, 2, 2, 2), bool))
    ours = Computed(scpm_order=[[0, 2, 1, 3]], tcpm1_keep=np.eye(2, dtype=bool)[None, None].repeat(2, 1))
    report = verdict_on(ours, pairs, reference=reference)
    assert report.moved == {"scpm.order": 2 * 2, "tcpm1.keep": 4 * 2}, "over two pairs"
    assert report.verdict == "accepted", "they explain, the image decides"
    assert verdict_on(Computed(), pairs, reference=reference).moved == {}, "only what both expose"


def test_a_swapped_channel_order_shows(tmp_path: Path) -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[..., 2] = np.arange(SIZE[1], dtype=np.uint8) * 3  # red, in OpenCV's order
    assert cv2.imwrite(str(tmp_path / "colour.png"), image)
    assert cv2.imwrite(str(tmp_path / "gray.png"), image[..., 2])
    found = find_pairs(tmp_path / "colour.png", tmp_path / "gray.png")

    def spec(name: str, *channels: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="uint8", shape=(1, *SIZE, *channels), meaning="RGB")

    image_io = dataclasses.replace(
        contract(), io="image", inputs=(spec("visible", 3), spec("infrared")), outputs=(spec("fused", 3),),
        size_multiple=1,
    )  # fmt: skip

    class Passes(Computed):
        def __init__(self, order: slice) -> None:
            self._order = order

        def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            return {"fused": inputs["visible"][..., self._order]}

    right, swapped = (
        Subject(name="x", backend=Passes(order), contract=image_io) for order in (slice(None), slice(None, None, -1))
    )
    assert judge(right, right, "", found, Limits()).verdict == "accepted"
    assert judge(swapped, right, "", found, Limits()).verdict == "rejected"


def test_pairs_of_another_size_are_named(pairs: list[Pair], tmp_path: Path) -> None:
    wide = np.zeros((48, 80), np.uint8)
    assert cv2.imwrite(str(tmp_path / "wide.png"), wide)
    (other,) = find_pairs(tmp_path / "wide.png", tmp_path / "wide.png")
    with pytest.raises(InputError, match="pair wide: "):
        verdict_on(Computed(), [other])


def test_no_pairs(pairs: list[Pair]) -> None:
    with pytest.raises(InputError, match="no pairs"):
        verdict_on(Computed(), [])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes an ONNX artifact whose image is off by ``offset`` from the mean of the inputs."""

    def make(name: str, *, offset: float = 0.0, precision: str = "fp32", **changes: Any) -> Path:
        def plane(name: str, channels: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, *SIZE))

        numbers = {"half": 0.5, "offset": offset}
        nodes = [
            helper.make_node("ReduceMean", ["visible", "one"], ["luma"], keepdims=1),
            helper.make_node("Add", ["luma", "infrared"], ["sum"]),
            helper.make_node("Mul", ["sum", "half"], ["mean"]),
            helper.make_node("Add", ["mean", "offset"], ["fused"]),
        ]
        constants = [helper.make_tensor(key, TensorProto.FLOAT, (), [value]) for key, value in numbers.items()]
        constants.append(helper.make_tensor("one", TensorProto.INT64, (1,), [1]))
        graph = helper.make_graph(
            nodes, "mean", [plane("visible", 3), plane("infrared", 1)], [plane("fused", 1)], constants
        )
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        manifest = Manifest(
            kind="onnx",
            source=Source(name="network.pth", sha256="a" * 64, preset="tiny", config={}),
            text=TextRecord(prompt="night", encoder="stand-in", permutations={"tcpm1": (1, 0)}, smallest_gaps={}),
            precision="fp16" if precision == "fp16" else "fp32",
            contract=contract(),
            opset=18,
            versions={},
            parity={},
        )
        dataclasses.replace(manifest, **changes).write(path)
        return path

    return make


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(accept)
    return app


def run(app: typer.Typer, artifact: Path, *options: str) -> Any:
    data = [str(artifact.parent / folder) for folder in ("visible", "infrared")]
    return CliRunner().invoke(app, [str(artifact), "--data", *data, *options])


def test_the_command_writes_the_verdict_into_the_manifest(app: typer.Typer, write: Write, pairs: list[Pair]) -> None:
    graph = write("fusion.onnx")
    half = write("fusion16.onnx", offset=0.0004, precision="fp16")
    result = run(app, half)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stderr.split())
    assert "against fusion.onnx" in text, "found beside it"
    found = read_manifest(half).acceptance
    assert found["verdict"] == "accepted"
    assert found["reference"] == {"name": "fusion.onnx", "sha256": read_manifest(graph).sha256}
    assert found["device"] == "CPU"
    assert [pair["name"] for pair in found["pairs"]] == ["one", "two"]


def test_a_rejection_has_its_own_exit_code_and_replaces_the_verdict(
    app: typer.Typer, write: Write, pairs: list[Pair]
) -> None:
    write("fusion.onnx")
    half = write("fusion16.onnx", offset=0.02, precision="fp16")
    assert run(app, half, "--psnr", "30").exit_code == 0
    result = run(app, half, "--json", "--limit", "1")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert printed == read_manifest(half).acceptance
    assert (printed["verdict"], len(printed["pairs"])) == ("rejected", 1)


def test_metrics_are_reported(app: typer.Typer, write: Write, pairs: list[Pair]) -> None:
    write("fusion.onnx")
    half = write("fusion16.onnx", offset=0.0004, precision="fp16")
    result = run(app, half, "--metrics", "--limit", "1")
    assert result.exit_code == 0, result.output
    assert {"Q_NCIE", "VIF", "SSIM", "Qabf", "Q_P"} <= read_manifest(half).acceptance["metrics"].keys()


def test_the_reference_is_of_the_same_weights_prompt_and_precision(write: Write, tmp_path: Path) -> None:
    half = write("half.onnx", precision="fp16")
    manifest = read_manifest(half)
    other_weights = write("weights.onnx", source=dataclasses.replace(manifest.source, sha256="b" * 64))
    other_prompt = write("prompt.onnx", text=dataclasses.replace(manifest.text, permutations={"tcpm1": (0, 1)}))
    with pytest.raises(InputError) as caught:
        reference_for(half, manifest)
    assert "weights.onnx: other weights" in caught.value.problem
    assert "prompt.onnx: another prompt" in caught.value.problem
    assert "network.pth" in caught.value.hint
    for named, reason in ((other_weights, "other weights"), (other_prompt, "another prompt"), (half, "fp16")):
        with pytest.raises(ArtifactError, match=reason):
            reference_for(half, manifest, named)
    right = write("right.onnx")
    assert reference_for(half, manifest) == right
    assert reference_for(half, manifest, right) == right
    manifest_path(right).unlink()
    checkpoint = tmp_path / "network.pth"
    checkpoint.write_bytes(b"weights")
    digest = "9f8cc5fe9c8d2a3b"  # not the file's
    with pytest.raises(InputError, match=r"network\.pth: other weights"):
        reference_for(half, dataclasses.replace(manifest, source=Source(
            name="network.pth", sha256=digest, preset="tiny", config={})))  # fmt: skip


def test_a_real_network_with_exposed_decisions_against_its_checkpoint(
    exported: Callable[[ExportOptions], Path], small_checkpoint: Checkpoint, pairs: list[Pair]
) -> None:
    """FP32 against FP32: no more than a level, hardly ever, and the same decisions but for ties."""
    from upfusion.torch_backend import TorchBackend

    sizes = SizeRange(minimum=SIZE, optimum=SIZE, maximum=SIZE)
    graph = exported(ExportOptions(precision="fp32", sizes=sizes, expose_ranks=True))
    manifest = read_manifest(graph)
    assert reference_for(graph, manifest, small_checkpoint.path) == small_checkpoint.path
    backend, _ = open_backend(graph, "cpu", None)
    report = judge(
        Subject(name="graph", backend=backend, contract=manifest.contract),
        Subject(name="checkpoint", backend=TorchBackend(small_checkpoint), contract=contract()),
        small_checkpoint.sha256,
        pairs,
        Limits(psnr_db=55),
    )
    assert report.verdict == "accepted", report.reasons
    assert {"scpm.order", "tcpm1.order", "tcpm4.keep"} <= report.moved.keys()
    recorded = record_acceptance(graph, report)
    assert recorded.acceptance["verdict"] == "accepted"
    assert read_manifest(graph) == recorded
