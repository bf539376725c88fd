"""Streams that differ a little from pixel to pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from upfusion.checkpoint import Checkpoint
from upfusion.export.deploy import fix_text, use_half_maps
from upfusion.export.dither import BY_ROW, SIDE, WITHIN, Dither
from upfusion.export.rewrites import DEFAULTS, apply_rewrites


def pooled_error(channels: Tensor) -> Tensor:
    """Return how far the mean of a convolution of half maps is from the exact one, for (B, C, H, W) float32."""
    weight = torch.randn(64, channels.shape[1], generator=torch.Generator().manual_seed(1))
    exact = torch.einsum("oc,bchw->bohw", weight.half().float(), channels)
    half = torch.einsum("oc,bchw->bohw", weight.half().float(), channels.half().float()).half().float()
    return (half.mean((2, 3)) - exact.mean((2, 3))).square().mean().sqrt()


def test_every_channel_keeps_its_mean_and_has_a_pattern_of_its_own():
    (factors,) = Dither(6)(torch.ones(2, 6, 4 * SIDE, 3 * SIDE, dtype=torch.float64))
    assert factors.shape == (2, 6, 4 * SIDE, 3 * SIDE)
    assert torch.equal(factors, factors[..., :SIDE].repeat(1, 1, 1, 3))
    tile = factors[..., :SIDE, :SIDE]
    assert (tile - tile.mean((2, 3), keepdim=True)).abs().max() < WITHIN
    assert torch.allclose(factors.mean((2, 3)), torch.ones(2, 6, dtype=torch.float64), atol=1e-7)
    assert (factors - 1).abs().max() < WITHIN + BY_ROW
    assert all(tile[0, k].unique().numel() == SIDE * SIDE for k in range(6))
    assert all(not torch.equal(tile[0, k], tile[0, 0]) for k in range(1, 6))
    assert torch.equal(Dither(6).pattern, Dither(6).pattern)
    apart = Dither(6)(*torch.ones(2, 6, 4 * SIDE, 3 * SIDE, dtype=torch.float64).chunk(2, dim=1))
    assert torch.equal(torch.cat(apart, dim=1), factors)


def test_rows_of_tiles_differ():
    """Bands of eight rows: the products of a flat map's channels are rounded once each, in a different place each."""
    (maps,) = Dither(24)(torch.rand(1, 24, 1, 1, generator=torch.Generator().manual_seed(0)).expand(1, 24, 256, 64))
    bands = maps.unflatten(2, (-1, SIDE)).transpose(1, 2).flatten(3).flatten(0, 1)  # (bands, C, pixels)
    exact = bands @ bands.mT / bands.shape[-1]
    error = (exact.half().float() - exact) / exact
    assert error.mean(0).square().mean().sqrt() < 0.3 * error.square().mean().sqrt()


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
    assert all(0 < float((ratio - 1).nan_to_num().abs().max()) < 1.1 * (WITHIN + BY_ROW) for ratio in seen)
