from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from upfusion.arithmetic import HalfArithmetic
from upfusion.export.deploy import use_half_maps
from upfusion.export.rewrites import apply_rewrites
from upfusion.export.rewrites.attend_channels_last import ChannelsLastAttention, attend_channels_last, bounding_scale
from upfusion.export.rewrites.open_attention import mix_channels

NEEDS = ("normalize_gram", "merge_attention_output", "fold_norm_scale", "split_gate")


@pytest.mark.parametrize("pair", [(), ("pair_encoders",)])
def test_is_the_same_network_in_float64(rewritten, deploy, pair):
    report = rewritten([*NEEDS, *pair, "attend_channels_last"])[-1]
    # Levels 1 to 3 of the decoder and the refinement, and of the encoders, which are half as many as pairs.
    assert report.rewritten == 4 + (3 if pair else 6)
    assert attend_channels_last(deploy).rewritten == 0  # nothing is left to change the second time


@pytest.mark.parametrize("temperature", [-0.7, 0.0])
def test_takes_any_temperature(deploy, expected, temperature):
    """A temperature that training turned negative, or that is 0 (every key counts alike)."""
    apply_rewrites(deploy, NEEDS)
    for parameter in deploy.network.refinement[0].attention.parameters():
        if parameter.shape == (1, 1):
            parameter.fill_(temperature)
    visible, infrared, *_ = expected[0]
    wanted = deploy(visible, infrared)
    assert attend_channels_last(deploy).rewritten
    got = deploy(visible, infrared)
    assert (got - wanted).abs().max() < 1e-10 * wanted.abs().max()


def test_values_without_their_means_give_the_same_result(deploy):
    apply_rewrites(deploy, [*NEEDS, "attend_channels_last"])
    block = deploy.network.refinement[0]
    x = block.norm_attention(torch.randn(2, 32, 16, 24).double())
    wanted = block.attention(x)
    means = torch.randn(1, 32).double()
    block.attention.value_means = means
    block.attention.value_depthwise.bias = nn.Parameter(-means[0], requires_grad=False)
    assert (block.attention(x) - wanted).abs().max() < 1e-10 * wanted.abs().max()


def test_a_mean_that_passes_by_the_half_matrix_is_kept():
    """The rounding error of the matrix meets what values have in common at all pixels, and shifts the result."""
    generator = torch.Generator().manual_seed(0)
    means = 3 + torch.rand(1, 24, generator=generator)
    varying = 0.1 * torch.randn(1, 24, 32, 32, generator=generator)
    matrix = torch.randn(1, 24, 24, generator=generator)
    wanted = mix_channels(varying + means[..., None, None], matrix).mean((2, 3))
    with HalfArithmetic():
        shifted = mix_channels((varying + means[..., None, None]).half(), matrix)
        kept = mix_channels(varying.half(), matrix, means)
    assert kept.dtype == torch.float16
    errors = [(got.float().mean((2, 3)) - wanted).square().mean().sqrt() for got in (kept, shifted)]
    assert errors[0] < errors[1] / 4


def test_does_nothing_without_its_needs(deploy):
    assert attend_channels_last(deploy).rewritten == 0


def test_no_standardised_input_passes_the_bound():
    """Random inputs, and for each channel the worst one: the pixel along its weights, with the kernel's own signs."""
    torch.manual_seed(0)
    pointwise = nn.Conv2d(12, 20, 1).double().requires_grad_(False)
    depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False).double().requires_grad_(False)
    scale = bounding_scale(pointwise, depthwise)
    assert torch.equal(scale.log2(), scale.log2().round())
    along = nn.functional.normalize(pointwise.weight.flatten(1), dim=1) * 12**0.5
    worst = along[:, :, None, None] * depthwise.weight.sign()
    for maps in (worst, -worst, nn.functional.normalize(torch.randn(9, 12, 3, 3).double(), dim=1) * 12**0.5):
        largest = (depthwise(pointwise(maps)) * scale[:, None, None]).abs().amax((0, 2, 3))
        assert (largest <= 1).all()
    assert (largest > 0).all()


def test_half_maps_do_not_overflow_where_plain_products_do(trained, text):
    """Queries and keys of several hundred: their products over a band leave half's range unless they are scaled."""
    from upfusion.export.deploy import fix_text

    deploy = fix_text(trained, text)[0].float()
    apply_rewrites(deploy, NEEDS)
    block = deploy.network.refinement[0]
    block.attention.depthwise.weight *= 300
    x = block.norm_attention(torch.randn(1, 32, 64, 96))
    wanted = block.attention(x)
    maps = block.attention.depthwise(block.attention.to_qkv(x)).half()
    assert not (maps.flatten(2) @ maps.flatten(2).transpose(1, 2)).isfinite().all()
    attend_channels_last(deploy)
    assert isinstance(block.attention, ChannelsLastAttention)
    use_half_maps(deploy)
    got = block.attention(x.half())
    # Half's rounding of some thirty steps, against the largest value.
    assert (got - wanted).abs().max() < 2e-2 * wanted.abs().max()


def test_bands_keep_the_cosines_where_a_compiler_adds_in_half():
    """Tensor cores add 16 products exactly; their sums may be kept in half. A quarter of a 480x640 map, 15 bands."""
    generator = np.random.default_rng(0)
    shared = 0.3 * generator.standard_normal((76800, 1))
    maps = (0.1 * (shared + generator.standard_normal((76800, 4)))).astype(np.float16)

    def cosines(products):
        norms = np.sqrt(np.diag(products))
        return products / np.outer(norms, norms)

    def added_in_half(pixels):
        total = np.zeros((4, 4), np.float16)
        for chunk in pixels.reshape(-1, 16, 4).astype(np.float32):
            total = (total + chunk.T @ chunk).astype(np.float16)
        return total.astype(np.float64)

    wide = maps.astype(np.float64)
    exact = cosines(wide.T @ wide)
    in_bands = cosines(sum(added_in_half(band) for band in maps.reshape(15, -1, 4)))
    assert np.abs(in_bands - exact).max() < 3e-4  # half's step is 1e-3 of a value, and 15 of them average out
    assert np.abs(cosines(added_in_half(maps)) - exact).max() > 1e-2
