"""The differentiable Q_P against the metric."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from upfusion.metrics import evaluate
from upfusion.phase_loss import FLOOR, phase_transfer_loss


def smooth_images(seed, count):
    random = np.random.Generator(np.random.PCG64(seed))
    fields = [cv2.GaussianBlur(random.uniform(0, 255, (96, 112)), (0, 0), 2.5) for _ in range(count)]
    return [np.rint(255 * (field - field.min()) / np.ptp(field)).astype(np.uint8) for field in fields]


def planes(*images):
    return [torch.from_numpy(image)[None, None] / 255 for image in images]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_metric(seed):
    first, second = smooth_images(seed, 2)
    fused = np.maximum(first, second)
    measured = evaluate(first, second, fused, ["Q_P"])["Q_P"]
    # float32, and floors under the roots that keep the gradient finite.
    assert 1 - phase_transfer_loss(*planes(fused, first, second)).item() == pytest.approx(measured, abs=5e-3)


def test_descending_raises_the_metric():
    first, second, other = smooth_images(2, 3)
    fused, *sources = planes(other, first, second)
    fused.requires_grad_()
    optimiser = torch.optim.Adam([fused], lr=0.02)
    for _ in range(30):
        optimiser.zero_grad()
        phase_transfer_loss(fused, *sources).backward()
        assert torch.isfinite(fused.grad).all()
        optimiser.step()
    written = np.rint(fused.detach().numpy()[0, 0].clip(0, 1) * 255).astype(np.uint8)
    before, after = (evaluate(first, second, image, ["Q_P"])["Q_P"] for image in (other, written))
    assert after > before + 0.1


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_images_give_a_finite_gradient(level):
    fused = torch.full((2, 1, 48, 48), level, requires_grad=True)
    loss = phase_transfer_loss(fused, torch.zeros(2, 1, 48, 48), torch.full((2, 1, 48, 48), level))
    loss.backward()
    assert loss.item() == pytest.approx(1 - FLOOR**3)
    assert torch.isfinite(fused.grad).all()
