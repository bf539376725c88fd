"""Weights rounded to half by what they respond to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upfusion.export.rounding import BLOCK, damped, input_likeness, moved_to_neighbours, round_conv, round_rows


def maps(seed: int, channels: int, images: int = 4) -> Tensor:
    """Return maps (B, C, 24, 24) as layers have them: few directions, a mean far from 0, a little noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(channels, 6, generator=torch.Generator().manual_seed(1))
    parts = torch.randn(images, 6, 24, 24, generator=generator) + 2 * torch.rand(images, 6, 1, 1, generator=generator)
    noise = 0.05 * torch.randn(images, channels, 24, 24, generator=generator)
    return torch.einsum("cd,bdhw->bchw", directions, parts) + noise


def convolution(channels: int, outputs: int, kernel: int, groups: int) -> nn.Conv2d:
    torch.manual_seed(3)
    return nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, groups=groups).requires_grad_(False)


def response_errors(conv: nn.Conv2d, exact: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far a convolution's response is from the exact one: root mean square, and that of image means."""
    error = conv.float()(x) - exact(x)
    return error.square().mean().sqrt(), error.mean((2, 3)).square().mean().sqrt()


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "groups", "left"),
    # Of many inputs' errors nearly all cancel; a depthwise kernel has nine weights for that.
    [(96, 64, 1, 1, 0.05), (96, 64, 1, 2, 0.1), (32, 16, 3, 1, 0.15), (64, 64, 3, 64, 0.4)],
    ids=["pointwise", "paired", "dense 3x3", "depthwise"],
)
def test_responses_to_other_inputs_are_kept(channels: int, outputs: int, kernel: int, groups: int, left: float):
    exact, nearest, ours = (convolution(channels, outputs, kernel, groups) for _ in range(3))
    nearest.half()
    round_conv(ours, exact.weight, exact.bias, maps(5, channels))
    assert ours.weight.dtype == ours.bias.dtype == torch.float16
    plain, plain_mean = response_errors(nearest, exact, maps(6, channels))
    kept, kept_mean = response_errors(ours, exact, maps(6, channels))
    assert kept_mean < left * plain_mean
    assert kept < plain
    # Weights stay what they are: a few of half's steps away, 2^-11 of the size.
    assert (ours.weight - exact.weight).abs().max() < 8 * 2.0**-11 * exact.weight.abs().max()


def test_unlike_inputs_leave_rounding_to_nearest():
    rows = torch.randn(2, 5, 2 * BLOCK + 3, dtype=torch.float64)
    likeness = torch.eye(rows.shape[-1], dtype=torch.float64).expand(2, -1, -1)
    assert torch.equal(round_rows(rows, likeness), rows.half().double())


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(2)
    inputs = torch.randn(1, 2 * BLOCK + 3, 500, dtype=torch.float64) + 1
    rows, likeness = torch.randn(1, 4, inputs.shape[1], dtype=torch.float64), inputs @ inputs.mT / 500
    found = round_rows(rows, likeness)
    monkeypatch.setattr("upfusion.export.rounding.BLOCK", 10_000)
    # float64 sums in another order may turn a rounding around; nearly all are the same.
    assert (round_rows(rows, likeness) == found).double().mean() > 0.99


def test_no_single_move_is_left_that_helps():
    torch.manual_seed(2)
    inputs = 0.1 * torch.randn(3, 10, 500, dtype=torch.float64) + 1
    rows, likeness = torch.randn(3, 4, 10, dtype=torch.float64), damped(inputs @ inputs.mT / 500)

    def errors(rounded: Tensor) -> Tensor:
        error = rounded - rows
        return ((error @ likeness) * error).sum(-1)

    start = round_rows(rows, likeness)
    found = moved_to_neighbours(start, rows, likeness)
    assert torch.equal(found, found.half().double())
    assert (errors(found) <= errors(start)).all()
    assert errors(found).sum() < 0.5 * errors(start).sum()
    for column in range(10):
        for end in (-torch.inf, torch.inf):
            other = found.clone()
            other[..., column] = torch.nextafter(found[..., column].half(), torch.tensor(end).half()).double()
            assert (errors(other) > errors(found) * (1 - 1e-4)).all()  # moves are compared in float32


def test_likeness_holds_the_bias_and_each_group():
    x = maps(4, 6)
    found = input_likeness(x, 1, 2)
    assert found.shape == (2, 4, 4)
    assert torch.allclose(found[0], input_likeness(x[:, :3], 1, 1)[0])
    assert torch.allclose(found[1], input_likeness(x[:, 3:], 1, 1)[0])
    means = x.mean((2, 3)).double()
    assert torch.allclose(found[0, 0, 0], torch.ones((), dtype=torch.float64))
    assert torch.allclose(found[0, 0, 1:], means[:, :3].mean(0), rtol=1e-4)  # sums of float32
