"""Losses: the authors' numbers, and how close the differentiable metrics are to the metrics."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from upfusion import losses
from upfusion.metrics import evaluate


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, torch.Tensor]:
    with np.load(golden / "loss.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file}


def sources(stored):
    return losses.channel_mean(stored["vis"]), stored["ir"]


def test_terms_equal_the_authors(stored):
    first, second = sources(stored)
    fused = stored["fused"]
    # float32 sums over 24,576 pixels in another order: a few 1e-7 relative.
    close = {"rtol": 2e-6, "atol": 0}
    torch.testing.assert_close(losses.intensity_loss(fused, first, second), stored["intensity"], **close)
    torch.testing.assert_close(losses.gradient_loss(fused, first, second), stored["gradient"], **close)
    torch.testing.assert_close(1 - losses.structure_loss(fused, first, second), stored["ssim_weighted"], **close)
    torch.testing.assert_close(losses.ssim_weights(first, second)[0], stored["weight_vis"], **close)
    torch.testing.assert_close(losses.ssim(first, fused), stored["ssim_vis"], **close)
    torch.testing.assert_close(losses.ssim(second, fused), stored["ssim_ir"], **close)


def test_gradient_of_the_total_equals_the_authors(stored):
    first, second = sources(stored)
    fused = stored["fused"].clone().requires_grad_()
    terms = losses.intensity_loss, losses.gradient_loss, losses.structure_loss
    total = 10 * sum(term(fused, first, second) for term in terms)
    total.backward()
    torch.testing.assert_close(total, stored["total"], rtol=5e-6, atol=0)
    # The largest gradient is 1.2e-2; rounding of the SSIM's variances reaches 7e-7.
    torch.testing.assert_close(fused.grad, stored["grad_total_wrt_fused"], rtol=0, atol=3e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_metric_terms_are_the_metrics(seed):
    random = np.random.Generator(np.random.PCG64(seed))
    smooth = [cv2.GaussianBlur(random.uniform(0, 255, (96, 112)), (0, 0), 2.5) for _ in range(2)]
    first, second = (np.rint(255 * (s - s.min()) / np.ptp(s)).astype(np.uint8) for s in smooth)
    fused = np.maximum(first, second)
    measured = evaluate(first, second, fused, ["SSIM", "VIF", "Qabf"])
    planes = [torch.from_numpy(image)[None, None] / 255 for image in (fused, first, second)]
    # float32 variances of float32 images, and floors that keep the gradient finite; Q^{AB/F} has a smooth angle.
    assert 1 - losses.metric_ssim_loss(*planes).item() == pytest.approx(measured["SSIM"], abs=2e-3)
    assert 1 - losses.visual_information_loss(*planes).item() == pytest.approx(measured["VIF"], abs=5e-3)
    assert 1 - losses.edge_transfer_loss(*planes).item() == pytest.approx(measured["Qabf"], abs=5e-2)


@pytest.mark.parametrize("tilt", [1, -1])
def test_level_edges_that_tilt_the_wrong_way_are_lost_as_in_the_metric(tilt: int):
    """The metric's angle jumps from one quarter turn to the other where an edge is level."""
    levels = 40 * np.arange(64)[:, None] % 200 + np.zeros((1, 64))
    source, fused = levels.astype(np.uint8), (levels + tilt * (np.arange(64) // 2)).astype(np.uint8)
    flat = np.zeros_like(source)
    measured = evaluate(source, flat, fused, ["Qabf"])["Qabf"]
    as_planes = [torch.from_numpy(image)[None, None] / 255 for image in (fused, source, flat)]
    assert measured < 0.6  # half of the edges, though nothing is off by more than a level for every two pixels
    assert 1 - losses.edge_transfer_loss(*as_planes).item() == pytest.approx(measured, abs=0.01)
    # Edges that stay level are on the border of the right side, so the loss trusts them less than the metric does.
    assert 0.65 < 1 - losses.edge_transfer_loss(as_planes[1], *as_planes[1:]).item() < 0.98


def test_dark_images_count_as_much_as_bright_ones():
    generator = torch.Generator().manual_seed(2)
    bright = (255 * torch.rand(3, 1, 64, 64, generator=generator)).round() / 255
    dark = (bright.flip(3) * 25).round() / 255
    for term in (losses.edge_transfer_loss, losses.visual_information_loss):
        both = term(*torch.stack([bright, dark], dim=1).unbind(0))
        alone = [term(*planes[:, None].unbind(0)) for planes in (bright, dark)]
        assert both.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "term",
    [
        losses.intensity_loss,
        losses.gradient_loss,
        losses.structure_loss,
        losses.metric_ssim_loss,
        losses.visual_information_loss,
        losses.edge_transfer_loss,
    ],
)
def test_black_and_equal_images_have_finite_gradients(term):
    black = torch.zeros(1, 1, 64, 64)
    fused = black.clone().requires_grad_()
    value = term(fused, black, black)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(fused.grad).all()


def test_as_written_rounds_and_passes_the_gradient_inside_the_range():
    fused = torch.tensor([-0.1, 0.5, 1.2, 100.4 / 255], requires_grad=True)
    levels = losses.as_written(fused)
    assert levels.tolist() == pytest.approx([0, 128, 255, 100])
    levels.sum().backward()
    assert fused.grad.tolist() == [0, 255, 0, 255]  # none beyond black and white
