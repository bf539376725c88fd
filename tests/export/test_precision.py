"""Half precision by a calibration: exact scales, safe ranges, fitted biases, frozen decisions."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn
from typer.testing import CliRunner

from upfusion.arithmetic import LARGEST_HALF, HalfArithmetic
from upfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upfusion.cli.app import app
from upfusion.config import ModelConfig
from upfusion.export.accuracy.flips import flips
from upfusion.export.accuracy.measure import measure
from upfusion.export.accuracy.table import decision_table, image_table, range_line
from upfusion.export.deploy import DeployNetwork, fix_text, use_half_maps
from upfusion.export.frozen_ranking import freeze_ranking, frozen_decisions
from upfusion.export.onnx_export import ExportOptions, export_onnx
from upfusion.export.precision import channel_means, fold_scales, mean_response, samples_of, to_half
from upfusion.export.rewrites import DEFAULTS, apply_rewrites
from upfusion.export.rewrites.attend_channels_last import ChannelsLastAttention
from upfusion.model import FusionNetwork
from upfusion.model.decisions import imposing
from upfusion.model.layers import ChannelAttention, GatedFeedForward
from upfusion.runtime.artifact import open_backend
from upfusion.runtime.calibration_file import (
    Calibration,
    CalibrationPair,
    DecisionRecord,
    Sample,
    SiteRange,
)
from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import SizeRange, Source, read_manifest
from upfusion.runtime.pairs import Pair
from upfusion.text import TextFeatures, stand_in_text

SIZE = (64, 64)
FIXED = SizeRange(minimum=SIZE, optimum=SIZE, maximum=SIZE)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth visible and infrared image of 64x64."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    planes = [127 + 120 * np.sin(a * rows + b * columns) for a, b in generator.uniform(0.05, 0.4, (4, 2))]
    return np.stack(planes[:3], -1).astype(np.uint8), planes[3].astype(np.uint8)


def calibration_of(checkpoint: Checkpoint) -> Calibration:
    """Return a calibration by hand of what these tests need, from two drawn pairs; the real one has its own tests."""
    network = checkpoint.model
    assert checkpoint.text is not None
    text = torch.from_numpy(checkpoint.text.features)
    images = [drawn(seed) for seed in (1, 2)]
    ranges: dict[str, SiteRange] = {}

    def keep(name: str, values: Tensor) -> None:
        largest = max(float(values.abs().max()), ranges[name].largest if name in ranges else 0.0)
        ranges[name] = SiteRange(largest=largest, p9999=largest)

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda m, a, out, name=name: keep(name, out)))
        if name.endswith(".project"):
            handles.append(module.register_forward_hook(lambda m, a, out, name=name: keep(f"{name}.input", a[0])))
    deploy = fix_text(network, checkpoint.text)[0]
    decided: dict[str, Tensor] = {}
    for visible, infrared in images:
        planes = (torch.from_numpy(visible / np.float32(255)).float().permute(2, 0, 1)[None],
                  torch.from_numpy(infrared / np.float32(255)).float()[None, None])  # fmt: skip
        with torch.no_grad():
            network(*planes, text)
            decided = deploy.with_decisions(*planes)[1]
    for handle in handles:
        handle.remove()
    decisions = {
        name: DecisionRecord(
            smallest_margin=0.0,
            p1_margin=0.0,
            agreement=(1.0,),
            majority=tuple(value[0].tolist())
            if name.endswith(".order")
            else tuple((~value).flatten().nonzero().flatten().tolist()),
        )
        for name, value in decided.items()
    }
    return Calibration(
        source=Source(name=checkpoint.path.name, sha256=checkpoint.sha256, preset="custom", config={}),
        text_sha256=checkpoint.text.sha256,
        pairs=(CalibrationPair(name="drawn", size=SIZE, first_sha256="", second_sha256=""),),
        target_size=SIZE,
        ranges=ranges,
        sums={},
        decisions=decisions,
        samples=tuple(Sample.of(f"drawn{index}", *pair) for index, pair in enumerate(images)),
        versions={},
        created="",
        tool_version="",
    )


@pytest.fixture(scope="module")
def calibration(small_checkpoint: Checkpoint) -> Calibration:
    return calibration_of(small_checkpoint)


def inflated(model: FusionNetwork, power: int) -> FusionNetwork:
    """Return the same function with weights that make maps 2^power larger inside attentions and feed-forwards."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ChannelAttention):
                module.to_qkv.weight.mul_(2.0**power)
                module.project.weight.mul_(2.0**-power)
            elif isinstance(module, GatedFeedForward):
                module.expand.weight[module.project.in_channels :].mul_(2.0**power)
                module.project.weight.mul_(2.0**-power)
    return model


@pytest.fixture(scope="module")
def loud(small_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The small network with weights that overflow half."""
    path = tmp_path_factory.mktemp("loud") / "loud.safetensors"
    save_checkpoint(inflated(small_checkpoint.model, 18), path, text=stand_in_text(), provenance={"weights": "random"})
    return load_checkpoint(path)


def emulated(deploy: DeployNetwork, planes: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad(), HalfArithmetic():
        return deploy(*planes)


def deployed(checkpoint: Checkpoint) -> DeployNetwork:
    text = checkpoint.text
    assert isinstance(text, TextFeatures)
    return fix_text(checkpoint.model, text)[0]


def test_scales_change_nothing_but_the_range(loud: Checkpoint, small_checkpoint: Checkpoint):
    calibration = calibration_of(loud)
    scaled = copy.deepcopy(loud.model)
    said = fold_scales(scaled, calibration)
    assert any("queries, keys and values by 2^-" in line for line in said)
    assert any("values of the feed-forward by 2^-" in line for line in said)
    planes = samples_of(calibration)
    text = torch.from_numpy(stand_in_text().features)
    with torch.no_grad():
        # Powers of two are exact, so only the norms' sums may round differently.
        assert torch.allclose(scaled(*planes, text), loud.model(*planes, text), rtol=1e-5, atol=1e-5)


def test_a_naive_half_export_overflows_and_ours_does_not(loud: Checkpoint):
    calibration = calibration_of(loud)
    planes = samples_of(calibration)
    naive = deployed(loud)
    use_half_maps(naive)
    assert not torch.isfinite(emulated(naive, planes)).all()

    scaled = copy.deepcopy(loud.model)
    fold_scales(scaled, calibration)
    ours = fix_text(scaled, stand_in_text())[0]
    report = to_half(ours, planes, calibrated=True)
    assert report.wide == ()
    wanted, decisions = deployed(loud).with_decisions(*planes)
    with imposing(ours.network, decisions):
        got = emulated(ours, planes)
    # Half has 11 bits; a few hundred roundings in a row cost well below one level in a hundred.
    assert (got - wanted).abs().mean() < 2e-3 * (wanted.max() - wanted.min())


@pytest.mark.parametrize("names", [(), DEFAULTS["tensorrt"]], ids=["plain", "rewritten"])
def test_a_stream_that_no_scale_can_help_stays_float32(small_checkpoint: Checkpoint, names: tuple[str, ...]):
    model = copy.deepcopy(small_checkpoint.model)
    with torch.no_grad():  # layer norms forget it; only the level-1 streams and what reads them are large
        model.expand.weight.mul_(2.0**18)
        model.expand.bias.mul_(2.0**18)
    deploy = fix_text(model, stand_in_text())[0]
    apply_rewrites(deploy, names)
    planes = samples_of(calibration_of(small_checkpoint))
    wanted, decisions = copy.deepcopy(deploy).with_decisions(*planes)
    report = to_half(deploy, planes, calibrated=True)
    assert report.wide
    assert report.half > len(report.wide)
    with imposing(deploy.network, decisions):
        got = emulated(deploy, planes)
    assert torch.isfinite(got).all()
    assert (got - wanted).abs().mean() < 2e-3 * (wanted.max() - wanted.min())


@pytest.mark.parametrize("names", [(), DEFAULTS["tensorrt"]], ids=["plain", "rewritten"])
def test_fitted_biases_take_the_shift_away(
    small_checkpoint: Checkpoint, calibration: Calibration, names: tuple[str, ...]
):
    planes = samples_of(calibration)
    forms = [deployed(small_checkpoint) for _ in range(3)]
    for form in forms:
        apply_rewrites(form, names)
    reference, nearest, fitted = forms
    use_half_maps(nearest)
    report = to_half(fitted, planes, calibrated=True)
    assert report.corrected == report.half > 40
    with torch.no_grad():
        _, decisions = reference.with_decisions(*planes)
    wanted, rounded, centred = (stream_means(form, planes, decisions) for form in (reference, nearest, fitted))
    # What is left is noise: at level 4 these crops have 128 pixels to average a rounding over.
    assert (centred - wanted).norm() < 0.4 * (rounded - wanted).norm()


def test_values_are_fitted_to_have_no_means(small_checkpoint: Checkpoint, calibration: Calibration):
    planes = samples_of(calibration)
    form = deployed(small_checkpoint)
    apply_rewrites(form, DEFAULTS["tensorrt"])
    with torch.no_grad():
        _, decisions = form.with_decisions(*planes)
    to_half(form, planes, calibrated=True)
    attentions = [module for module in form.modules() if isinstance(module, ChannelsLastAttention)]
    means: list[Tensor] = []
    for attention in attentions:
        attention.value_depthwise.register_forward_hook(lambda module, args, out: means.append(channel_means(out)))
    with torch.no_grad(), imposing(form.network, decisions), HalfArithmetic():
        form(*planes)
    assert len(means) == len(attentions) > 0
    for attention, left in zip(attentions, means, strict=True):
        assert attention.value_means is not None
        assert left.norm() < 0.05 * attention.value_means.norm()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 7), (6, 4)], ids=str)
@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (1, 2), (3, 1), (3, 4)])
def test_the_mean_of_a_response_needs_no_response(size: tuple[int, int], kernel: int, groups: int):
    torch.manual_seed(4)
    conv = torch.nn.Conv2d(4, 8, kernel, padding=kernel // 2, groups=groups).requires_grad_(False)
    x = torch.randn(3, 4, *size)
    found = mean_response(x, conv.weight, conv.bias, groups)
    torch.testing.assert_close(found, channel_means(conv(x)), rtol=1e-5, atol=1e-6)


def stream_means(form: DeployNetwork, planes: tuple[Tensor, Tensor], decisions: Mapping[str, Tensor]) -> Tensor:
    """Return the channel means of the last residual stream, in emulated half if the form is half."""
    found: list[Tensor] = []
    last = (form.decode or form.network).refinement
    handle = last.register_forward_hook(lambda m, a, out: found.append(channel_means(out)))
    with imposing(form.network, decisions):
        emulated(form, planes)
    handle.remove()
    return found[0]


def stress_images() -> dict[str, tuple[Tensor, Tensor]]:
    """Return images that are hard on half: flat, empty but for a pixel, stretched 16 bit, noise."""
    black, white = torch.zeros(1, 1, *SIZE), torch.ones(1, 1, *SIZE)
    pixel = black.clone()
    pixel[..., 20, 30] = 1.0
    noise = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(3))
    ramp = torch.linspace(0, 65535, SIZE[0] * SIZE[1]).floor().reshape(1, 1, *SIZE)
    stretched = (ramp - 31000).clamp(0, 900) / 900
    planes = {"black": black, "white": white, "one pixel": pixel, "noise": noise, "stretched": stretched}
    return {name: (plane.expand(1, 3, *SIZE).contiguous(), plane) for name, plane in planes.items()}


@pytest.mark.parametrize("names", [(), DEFAULTS["tensorrt"]], ids=["plain", "rewritten"])
def test_hard_images_stay_finite_and_near(
    small_checkpoint: Checkpoint, calibration: Calibration, names: tuple[str, ...]
):
    reference, ours = deployed(small_checkpoint), deployed(small_checkpoint)
    for form in (reference, ours):
        apply_rewrites(form, names)
    to_half(ours, samples_of(calibration), calibrated=True)
    for name, planes in stress_images().items():
        with torch.no_grad():
            wanted, decisions = reference.with_decisions(*planes)
        overflows: list[float] = []
        with (
            torch.no_grad(),
            imposing(ours.network, decisions),
            HalfArithmetic(lambda values, found=overflows: found.append(float(values.abs().max()))),
        ):
            got = ours(*planes)
        assert torch.isfinite(got).all(), name
        assert max(overflows) < LARGEST_HALF, name
        # A flat image has tiny variances that layer norms blow up again: ten times the usual rounding error.
        assert (got - wanted).abs().mean() < 2e-2 * max(1.0, float(wanted.abs().max())), name


def test_sums_over_a_large_image_overflow_nowhere():
    """Norms and products of 1.3 million pixels of noise, in the narrowest network that the layers allow."""
    narrow = ModelConfig(
        dim=8,
        num_blocks=(1, 1, 1, 1),
        num_refinement_blocks=1,
        ffn_expansion=1.0,
        text_hidden=8,
        convnext_depths=(1, 1, 1, 1),
        convnext_dims=(8, 8, 8, 8),
    )
    torch.manual_seed(4)
    ours = fix_text(FusionNetwork(narrow), stand_in_text())[0]
    apply_rewrites(ours, DEFAULTS["tensorrt"])
    use_half_maps(ours)
    largest: list[float] = []
    noise = torch.rand(1, 1, 1024, 1280, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), HalfArithmetic(lambda values: largest.append(float(values.abs().max()))):
        fused = ours(noise, noise)
    assert torch.isfinite(fused).all()
    assert max(largest) < LARGEST_HALF


def test_frozen_decisions_are_the_networks_on_the_image_they_came_from(
    small_checkpoint: Checkpoint, calibration: Calibration
):
    frozen = deployed(small_checkpoint)
    constants = freeze_ranking(frozen, calibration)
    visible, infrared = (planes[1:] for planes in samples_of(calibration))
    reference = deployed(small_checkpoint)
    with torch.no_grad():
        wanted, decisions = reference.with_decisions(visible, infrared)
        got = frozen(visible, infrared)
    for name, value in frozen_decisions(constants).items():
        assert torch.equal(value, decisions[name]), name
    # Folding reorders float32 sums.
    assert torch.allclose(got, wanted, atol=2e-5)
    assert not any("trunk" in name or "squeeze" in name for name, _ in frozen.named_parameters())


def test_flips_have_places_and_margins():
    values = torch.tensor([[0.5, 0.4, 0.39, 0.1]])
    moved = flips(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 1]]), values)
    assert (moved.moved, moved.of, moved.first_place) == (2, 3, 1)
    assert moved.margins == pytest.approx((0.01, 0.01), rel=1e-5)  # the values are float32
    logits = torch.tensor([[[[3.0, 1.0, 1.25]]]])
    kept = torch.tensor([[[[True, False, True]]]])
    assert flips(kept, kept, logits).moved == 0
    mask = flips(kept, torch.tensor([[[[True, True, False]]]]), logits)
    assert (mask.moved, mask.tied, mask.first_place, mask.margins) == (2, 0, -1, (0.25,))
    even = torch.tensor([[0.5, 1.0, 1.0, 0.1]])
    tied = flips(torch.tensor([[1, 2, 0]]), torch.tensor([[2, 1, 3]]), even)
    assert (tied.moved, tied.tied) == (3, 2)
    logits = torch.tensor([[[[3.0, 1.0, 1.0]]]])
    assert flips(kept, torch.tensor([[[[True, True, False]]]]), logits).tied == 2


@pytest.fixture(scope="module")
def saved(small_checkpoint: Checkpoint, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    calibration.write(path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    paths = folder / "visible.png", folder / "infrared.png"
    for path, image in zip(paths, drawn(7), strict=True):
        write_image(path, image)
    return Pair(name="drawn", first=paths[0], second=paths[1])


def test_a_calibrated_graph_is_half_measured_and_says_so(
    exported: Callable[[ExportOptions], Path], small_checkpoint: Checkpoint, saved: Path, pair: Pair
):
    path = exported(ExportOptions(sizes=FIXED, precision="fp16", calibration=saved))
    manifest = read_manifest(path)
    assert manifest.calibration["name"] == "calibration.json"
    assert any("fitted to its crops" in note for note in manifest.notes)
    model = onnx.load(path)
    kinds = [tensor.data_type for tensor in model.graph.initializer]
    assert kinds.count(TensorProto.FLOAT16) > 40
    casts = {out: node for node in model.graph.node if node.op_type == "Cast" for out in node.output}
    for node in casts.values():  # a cast of a cast back to the type it had would cancel
        assert not (node.input[0] in casts and casts[node.input[0]].input[0] in casts)
    report = measure(path, small_checkpoint, None, [pair])
    assert report.edges > 50
    assert report.saturated == ()
    assert report.pairs[0].numerics.psnr_db is None or report.pairs[0].numerics.psnr_db > 45
    sites = {f"tcpm{level}.{what}" for level in (1, 2, 3, 4) for what in ("order", "keep")}
    assert set(report.pairs[0].decisions) == {"scpm.order"} | sites
    assert "no overflow" in range_line(report)
    assert image_table(report).row_count == 1
    assert decision_table(report).row_count == 9


def test_a_frozen_graph_ranks_nothing_and_states_its_price(
    exported: Callable[[ExportOptions], Path], small_checkpoint: Checkpoint, saved: Path, pair: Pair
):
    path = exported(ExportOptions(sizes=FIXED, precision="fp16", calibration=saved, ranking="frozen"))
    manifest = read_manifest(path)
    assert manifest.ranking == "frozen"
    assert [entry["pair"] for entry in manifest.calibration["frozen_price"]] == ["drawn0", "drawn1"]
    model = onnx.load(path)
    assert not any(node.op_type == "TopK" for node in model.graph.node)
    dynamic = exported(ExportOptions(sizes=FIXED, precision="fp16", calibration=saved))
    ranking = small_checkpoint.model.pruning.trunk.parameters()
    dropped = sum(4 * values.numel() for values in ranking)
    assert path.stat().st_size < dynamic.stat().st_size - dropped  # and the squeeze branches
    report = measure(path, small_checkpoint, None, [pair], tf32=False)
    assert report.pairs[0].numerics.psnr_db is None or report.pairs[0].numerics.psnr_db > 45


def test_without_a_calibration_the_manifest_says_so(exported: Callable[[ExportOptions], Path]):
    manifest = read_manifest(exported(ExportOptions(sizes=FIXED, precision="fp16")))
    assert any("without a calibration" in note for note in manifest.notes)
    assert manifest.calibration == {}


def test_a_half_graph_has_no_more_rows_than_its_dither():
    tall = SizeRange(minimum=(64, 64), optimum=(64, 64), maximum=(8200, 64))
    with pytest.raises(InputError, match="up to 8192 rows, not 8200"):
        ExportOptions(precision="fp16", sizes=tall)
    assert ExportOptions(precision="fp32", sizes=tall).sizes == tall


def test_foreign_calibrations_and_checkpoints_are_refused(
    exported: Callable[[ExportOptions], Path],
    small_checkpoint: Checkpoint,
    loud: Checkpoint,
    saved: Path,
    pair: Pair,
    tmp_path: Path,
):
    options = ExportOptions(sizes=FIXED, precision="fp16", calibration=saved)
    with pytest.raises(ArtifactError, match=r"calibration\.json calibrates another checkpoint"):
        export_onnx(loud, tmp_path / "x.onnx", None, options)
    foreign = TextFeatures(features=-stand_in_text().features, prompt="another prompt", encoder="none")
    with pytest.raises(ArtifactError, match=r"calibration\.json was made with another text feature than 'another pr"):
        export_onnx(small_checkpoint, tmp_path / "x.onnx", foreign, options)
    assert not (tmp_path / "x.onnx").exists()
    with pytest.raises(ArtifactError, match="exported from another checkpoint"):
        measure(exported(options), loud, None, [pair])
    with pytest.raises(InputError, match="changes nothing"):
        dataclasses.replace(options, precision="fp32")
    with pytest.raises(InputError, match="needs the decisions of a calibration"):
        dataclasses.replace(options, calibration=None, ranking="frozen")


def test_verify_tells_numerics_from_decisions(
    exported: Callable[[ExportOptions], Path], small_checkpoint: Checkpoint, saved: Path, pair: Pair
):
    half = exported(ExportOptions(sizes=FIXED, precision="fp16", calibration=saved))
    data = ["--data", str(pair.first), str(pair.second), "--json"]
    result = CliRunner().invoke(app, ["verify", str(half), str(small_checkpoint.path), *data, "--psnr", "20"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    measured = measure(half, small_checkpoint, None, [pair])
    assert found["flips"] == measured.flips()
    assert found["tf32_flips"] == measured.flips(tf32=True)
    assert found["saturated"] == []
    (one,) = found["accuracy"]["pairs"]
    assert one["numerics"]["psnr_db"] == measured.pairs[0].numerics.psnr_db
    assert one["together"]["psnr_db"] == measured.pairs[0].together.psnr_db
    for what in ("numerics", "decisions", "range", "together"):
        assert f"{what} " in result.stderr
    result = CliRunner().invoke(app, ["verify", str(small_checkpoint.path), str(half), *data, "--psnr", "90"])
    assert result.exit_code == 1
    # FP32 beside an FP32 graph: the images alone.
    graph = exported(ExportOptions(sizes=FIXED))
    result = CliRunner().invoke(app, ["verify", str(graph), str(small_checkpoint.path), *data, "--tolerance", "255"])
    assert result.exit_code == 0
    assert "accuracy" not in json.loads(result.stdout)


def test_a_backend_that_exposes_its_decisions_is_measured(
    exported: Callable[[ExportOptions], Path], small_checkpoint: Checkpoint, pair: Pair
):
    shown, hidden = exported(ExportOptions(sizes=FIXED, expose_ranks=True)), exported(ExportOptions(sizes=FIXED))
    report = measure(shown, small_checkpoint, None, [pair], backend=open_backend(shown, "cpu", None)[0], tf32=False)
    assert len(report.pairs[0].decisions) == 9
    # Same decisions, FP32 on both sides: the image agrees to the level.
    assert report.pairs[0].numerics.max_levels <= 1
    report = measure(hidden, small_checkpoint, None, [pair], backend=open_backend(hidden, "cpu", None)[0], tf32=False)
    assert report.pairs[0].decisions == {}


def test_gray_pairs_are_measured_on_a_graph_of_images(
    exported: Callable[[ExportOptions], Path], small_checkpoint: Checkpoint, pair: Pair
):
    gray = Pair(name="gray", first=pair.second, second=pair.second)
    report = measure(exported(ExportOptions(sizes=FIXED, io="image")), small_checkpoint, None, [gray, pair], tf32=False)
    assert [len(found.decisions) for found in report.pairs] == [9, 9]
    assert max(found.numerics.max_levels for found in report.pairs) <= 1


def test_streams_without_room_in_half_are_float32_in_the_graph(
    small_checkpoint: Checkpoint, pair: Pair, tmp_path: Path
):
    model = copy.deepcopy(small_checkpoint.model)
    with torch.no_grad():  # no power of two can be folded here: the streams themselves pass 65,504
        model.expand.weight.mul_(2.0**18)
        model.expand.bias.mul_(2.0**18)
    save_checkpoint(model, tmp_path / "x.safetensors", text=stand_in_text(), provenance={"weights": "random"})
    checkpoint = load_checkpoint(tmp_path / "x.safetensors")
    calibration_of(checkpoint).write(tmp_path / "calibration.json")
    options = ExportOptions(sizes=FIXED, precision="fp16", calibration=tmp_path / "calibration.json")
    manifest = export_onnx(checkpoint, tmp_path / "x.onnx", None, options)
    assert any(note.startswith("float32 where half has no room") for note in manifest.notes)
    report = measure(tmp_path / "x.onnx", checkpoint, None, [pair], tf32=False)
    assert report.edges > 50
    assert report.saturated == ()
    # Without a calibration the same is seen on the synthetic pair.
    manifest = export_onnx(checkpoint, tmp_path / "y.onnx", None, ExportOptions(sizes=FIXED, precision="fp16"))
    assert any(note.startswith("float32 where half has no room") for note in manifest.notes)
