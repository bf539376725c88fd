"""Classical fusions as examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from upfusion.evaluation.baselines import BASELINES
from upfusion.losses import edge_transfer_loss
from upfusion.train.examples import example, example_loss


def pair(seed: int, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return two smooth images with a texture of their own in one half each; ``gain`` darkens the first."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0.2, 0.6, 96)[None] * np.ones((96, 1))
    planes = []
    for half, bright in ((slice(0, 48), gain), (slice(48, 96), 1.0)):
        plane = ramp.copy()
        plane[:, half] += generator.uniform(-0.15, 0.15, (96, 48))
        planes.append(torch.from_numpy(plane * bright).float()[None, None])
    return planes[0], planes[1]


def fused_by(method: str, first: Tensor, second: Tensor) -> Tensor:
    a, b = (plane[0, 0].mul(255).round().byte().numpy() for plane in (first, second))
    return torch.from_numpy(BASELINES[method](a, b))[None, None].float() / 255


@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_it_is_the_fusion_that_passes_on_more_edges(gain: float):
    first, second = pair(1, gain)
    methods = {name: fused_by(name, first, second) for name in ("guided filter", "maximum")}
    lost = {name: float(edge_transfer_loss(fused, first, second)) for name, fused in methods.items()}
    assert lost["guided filter"] != lost["maximum"]
    assert torch.equal(example(first, second), methods[min(lost, key=lost.__getitem__)])


def test_each_pair_of_a_batch_has_its_own():
    pairs = [pair(1), pair(2, 0.05)]
    first, second = (torch.cat(planes) for planes in zip(*pairs, strict=True))
    both = example(first, second)
    assert torch.equal(both, torch.cat([example(*each) for each in pairs]))
    assert example_loss(both, first, second) == 0


def test_only_the_fused_image_gets_a_gradient():
    first, second = pair(3)
    fused = (first + second).div(2).requires_grad_()
    example_loss(fused, first, second).backward()
    assert fused.grad is not None
    # The gradient of a mean of absolute differences: its sign, over the number of pixels.
    assert set(fused.grad.sign().unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert fused.grad.abs().max() == pytest.approx(1 / fused.numel())
