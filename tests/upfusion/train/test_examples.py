"""Classical fusions as examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from upfusion.evaluation.baselines import BASELINES
from upfusion.losses import edge_transfer_loss
from upfusion.train.examples import BLACK, example, example_loss


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


@pytest.mark.parametrize("expected", ["guided filter", "maximum"])
def test_it_is_the_fusion_that_passes_on_more_edges(expected: str):
    first, second = pair(1)
    if expected == "maximum":
        first = 0.8 * second  # the same, but darker: the second is all there is
    methods = {name: fused_by(name, first, second) for name in ("guided filter", "maximum")}
    lost = {name: float(edge_transfer_loss(fused, first, second)) for name, fused in methods.items()}
    assert min(lost, key=lost.__getitem__) == expected
    assert torch.equal(example(first, second), methods[expected])


def test_a_dark_pair_has_its_maximum():
    first, second = pair(1, 0.3)
    methods = {name: fused_by(name, first, second) for name in ("guided filter", "maximum")}
    lost = {name: float(edge_transfer_loss(fused, first, second)) for name, fused in methods.items()}
    assert lost["guided filter"] < lost["maximum"]
    assert torch.equal(example(first, second), methods["maximum"])


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
    # The gradient of a mean of absolute differences: its sign, over the number of pixels and the brightness.
    assert set(fused.grad.sign().unique().tolist()) <= {-1.0, 0.0, 1.0}
    bright = float(example(first, second).mean()) + BLACK
    assert fused.grad.abs().max() * fused.numel() * bright == pytest.approx(1, rel=1e-4)


def test_a_level_counts_for_more_in_the_dark():
    first, second = pair(4)
    lost = [
        float(example_loss(example(*planes) + 1 / 255, *planes))
        for planes in ((first, second), (first / 8, second / 8), (torch.zeros_like(first), torch.zeros_like(second)))
    ]
    assert 2 * lost[0] < lost[1] < lost[2] == pytest.approx(1 / 255 / BLACK, rel=1e-5)
