"""How far two images and two artifacts are apart."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from upfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upfusion.cli.app import app
from upfusion.export.onnx_export import ExportOptions, export_onnx
from upfusion.export.verify import compare_artifacts, difference
from upfusion.runtime.errors import InputError
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import SizeRange
from upfusion.samples import write_samples
from upfusion.text import stand_in_text


def image(seed: int = 0, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, np.uint8)


def test_equal_images():
    same = difference(image(), image(), "x")
    assert (same.max_levels, same.mean_levels, same.share_off) == (0, 0, 0)
    assert math.isinf(same.psnr_db)
    assert same.ssim == pytest.approx(1)


def test_one_pixel_off():
    first = np.full((40, 50), 100, np.uint8)
    second = first.copy()
    second[3, 4] = 90
    off = difference(first, second, "x")
    assert off.max_levels == 10
    assert off.share_off == 1 / 2000
    assert off.psnr_db == pytest.approx(10 * math.log10(255**2 / (100 / 2000)))
    assert off.ssim < 1


def test_sizes_must_agree():
    with pytest.raises(InputError, match="pair 7"):
        difference(image(), image(shape=(41, 50)), "pair 7")


def test_worst_pair_is_named(tmp_path: Path):
    pairs = write_samples(tmp_path)

    def average(visible, infrared, color):
        assert color == "gray"
        luma = visible if visible.ndim == 2 else visible.mean(2)
        return ((luma.astype(float) + infrared) / 2).astype(np.uint8)

    def darker(visible, infrared, color):
        fused = average(visible, infrared, color)
        return fused if visible.ndim == 3 else fused // 2

    seen = []
    result = compare_artifacts(darker, average, pairs, done=lambda pair: seen.append(pair.name))
    assert result.worst.name == "head_phantom"
    assert seen == [pair.name for pair in pairs]
    record = json.loads(json.dumps(result.to_dict()))
    assert record["worst_pair"] == "head_phantom"
    assert record["pairs"][0]["psnr_db"] is None  # equal
    with pytest.raises(InputError):
        compare_artifacts(average, average, [])


FIXED = SizeRange(minimum=(64, 64), optimum=(64, 64), maximum=(64, 64))


@pytest.mark.parametrize("apart", [False, True], ids=["ties alone", "other weights in the graph, too"])
def test_an_fp32_graph_that_sorts_ties_otherwise_is_the_network(
    small_checkpoint: Checkpoint, tmp_path: Path, apart: bool, monkeypatch: pytest.MonkeyPatch
):
    """Squeeze branches of zeros rank equal values, which PyTorch and ONNX Runtime sort differently."""
    model = copy.deepcopy(small_checkpoint.model)
    with torch.no_grad():
        for perturb in model.perturbations:
            perturb.squeeze[2].weight.zero_()
    network, graph = tmp_path / "tied.safetensors", tmp_path / "tied.onnx"
    save_checkpoint(model, network, text=stand_in_text(), provenance={"weights": "random"})
    checkpoint = load_checkpoint(network)
    if apart:
        checkpoint.model.output.weight.data.mul_(0.5)
        monkeypatch.setattr("upfusion.export.onnx_export.compare", lambda *_: {})
    export_onnx(checkpoint, graph, None, ExportOptions(sizes=FIXED))
    for name, seed in (("visible", 1), ("infrared", 2)):
        write_image(tmp_path / f"{name}.png", image(seed, (64, 64)))
    data = ["--data", str(tmp_path / "visible.png"), str(tmp_path / "infrared.png")]
    result = CliRunner().invoke(app, ["verify", str(graph), str(network), *data, "--json"])
    found = json.loads(result.stdout)
    assert found["max_levels"] > 1
    assert found["ties"]["tied"] > 0
    assert found["ties"]["flips"] == 0
    assert (found["ties"]["max_levels_with_the_same_decisions"] > 1) == apart
    assert found["agree"] is not apart
    assert result.exit_code == (1 if apart else 0)
    assert "decisions moved at exact ties, 0 elsewhere" in " ".join(result.stderr.split())
