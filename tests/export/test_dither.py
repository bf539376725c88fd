"""Streams that differ a little from pixel to pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from upfusion.checkpoint import Checkpoint
from upfusion.export.deploy import fix_text, use_half_maps
from upfusion.export.dither import LARGEST, SIDE, Dither
from upfusion.export.rewrites import DEFAULTS, apply_rewrites


def pooled_error(channels: Tensor) -> Tensor:
    """Return how far the mean of a convolution of half maps is from the exact one, for (B, C, H, W) float32."""
    weight = torch.randn(64, channels.shape[1], generator=torch.Generator().manual_seed(1))
    exact = torch.einsum("oc,bchw->bohw", weight.half().float(), channels)
    half = torch.einsum("oc,bchw->bohw", weight.half().float(), channels.half().float()).half().float()
    return (half.mean((2, 3)) - exact.mean((2, 3))).square().mean().sqrt()


def test_every_channel_keeps_its_mean_and_has_a_pattern_of_its_own():
    (factors,) = Dither(6)(torch.ones(2, 6, 2 * SIDE, 3 * SIDE, dtype=torch.float64))
    assert factors.shape == (2, 6, 2 * SIDE, 3 * SIDE)
    tile = factors[..., :SIDE, :SIDE]
    assert torch.equal(factors, tile.repeat(1, 1, 2, 3))
    assert torch.allclose(tile.mean((2, 3)), torch.ones(2, 6, dtype=torch.float64), atol=1e-9)
    assert (tile - 1).abs().max() < LARGEST
    assert all(tile[0, k].unique().numel() == SIDE * SIDE for k in range(6))
    assert all(not torch.equal(tile[0, k], tile[0, 0]) for k in range(1, 6))
    assert torch.equal(Dither(6).pattern, Dither(6).pattern)
    apart = Dither(6)(*torch.ones(2, 6, 2 * SIDE, 3 * SIDE, dtype=torch.float64).chunk(2, dim=1))
    assert torch.equal(torch.cat(apart, dim=1), factors)


@pytest.mark.parametrize("black", [1.0, 0.5], ids=["all of it", "half of it"])
def test_rounding_errors_of_flat_maps_average_out(black: float):
    generator = torch.Generator().manual_seed(4)
    maps = torch.randn(1, 96, 64, 64, generator=generator)
    ground = int(64 * black)
    maps[..., :ground] = torch.randn(1, 96, 1, 1, generator=generator)
    (with_pattern,) = Dither(96)(maps)
    assert pooled_error(with_pattern) < 0.2 * pooled_error(maps)


@pytest.mark.parametrize("names", [(), DEFAULTS["tensorrt"]], ids=["plain", "rewritten"])
def test_half_forms_dither_their_streams_and_no_others(small_checkpoint: Checkpoint, names: tuple[str, ...]):
    assert small_checkpoint.text is not None
    form = fix_text(small_checkpoint.model, small_checkpoint.text)[0]
    apply_rewrites(form, names)
    assert form.dither is None
    use_half_maps(form)
    seen: list[Tensor] = []
    assert form.dither is not None
    form.dither.register_forward_hook(lambda module, args, out: seen.extend(map(torch.div, out, args)))
    with torch.no_grad():
        form(torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64))
    assert seen
    assert all(0 < float((ratio - 1).nan_to_num().abs().max()) < 1.1 * LARGEST for ratio in seen)
