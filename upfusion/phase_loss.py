"""A differentiable Q_P: how well phase congruency reaches the fused image.

The metric itself, with its definitions and sources, is ``upfusion.metrics.phase``; its filters are used here too.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from upfusion.losses import as_written, gaussian_window, separably_filtered
from upfusion.metrics.phase import FEATURE, STABILISER
from upfusion.metrics.phase_congruency import (
    NOISE_DEVIATIONS,
    NOISE_SHRINK,
    ORIENTATIONS,
    SCALES,
    SPREAD_CUTOFF,
    SPREAD_GAIN,
    TINY,
    Half,
    filter_bank,
)

FEWEST_FEATURES = 50
"""A crop with fewer feature pixels than this counts as if it had so many: its few correlations are chance."""
FLOOR = 0.05
"""Each of the three mean correlations counts at least this much, so that none silences the other two."""
POWER_FLOOR, SPREAD_FLOOR = 1e-6, 1e-10
"""Added under square roots, whose slope at 0 is infinite."""


class Filters(NamedTuple):
    """The log-Gabor filters of one image size, as tensors."""

    even: Tensor  # (6, 4, H, W // 2 + 1)
    odd: Tensor
    noise_over_finest: Tensor  # (6,), energies of the noise and of the finest filter
    cosine: Tensor  # (6,), of twice the orientation's angle
    sine: Tensor


@functools.lru_cache(maxsize=4)
def filters(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Filters:
    """Return the filters for images of (height, width)."""
    bank = filter_bank((height, width))
    products = [radial.times(angular) for angular in bank.angular for radial in bank.radial]
    angles = np.arange(ORIENTATIONS) * (2 * math.pi / ORIENTATIONS)
    noise = np.asarray(bank.noise_energy) / np.asarray(bank.finest_energy)

    def planes(part: list[Half]) -> Tensor:
        return torch.from_numpy(np.stack(part)).to(device, dtype).unflatten(0, (ORIENTATIONS, SCALES))

    even, odd = ([pair[place] for pair in products] for place in (0, 1))
    vectors = (torch.from_numpy(vector).to(device, dtype) for vector in (noise, np.cos(angles), np.sin(angles)))
    return Filters(planes(even), planes(odd), *vectors)


def phase_maps(levels: Tensor) -> Tensor:
    """Return phase congruency, its maximum and its minimum moment, (B, 3, H, W), of grey levels (B, 1, H, W).

    As ``upfusion.metrics.phase_congruency.phase_maps``. The noise threshold passes no gradient.
    """
    height, width = levels.shape[-2:]
    bank = filters(height, width, levels.device, levels.dtype)
    spectrum = torch.fft.rfft2(levels)[:, :, None]
    even = torch.fft.irfft2(spectrum * bank.even, s=(height, width))  # (B, 6, 4, H, W)
    odd = torch.fft.irfft2(-1j * spectrum * bank.odd, s=(height, width))
    with torch.no_grad():
        median = (even[:, :, 0].square() + odd[:, :, 0].square()).flatten(2).median(-1).values
        tau = (median / math.log(2) * bank.noise_over_finest).sqrt()
        threshold = tau * (math.sqrt(math.pi / 2) + NOISE_DEVIATIONS * math.sqrt(2 - math.pi / 2)) / NOISE_SHRINK
    amplitude = (even.square() + odd.square() + POWER_FLOOR).sqrt()
    amplitudes, largest = amplitude.sum(2), amplitude.amax(2)  # (B, 6, H, W)
    even_sum, odd_sum = even.sum(2, keepdim=True), odd.sum(2, keepdim=True)
    square = (even_sum.square() + odd_sum.square())[:, :, 0]
    deviation = (even * odd_sum - odd * even_sum).abs().sum(2)
    energy = (square - deviation) / ((square + POWER_FLOOR).sqrt() + TINY) - threshold[..., None, None]
    spread = amplitudes / (largest + TINY) / SCALES
    energy = energy.clamp(min=0) * torch.sigmoid(SPREAD_GAIN * (spread - SPREAD_CUTOFF))
    congruency = energy.sum(1, keepdim=True) / (amplitudes.sum(1, keepdim=True) + TINY)
    squares = (energy / amplitudes).square()
    total = squares.sum(1, keepdim=True) / 3
    cosine = (squares * bank.cosine[:, None, None]).sum(1, keepdim=True) / 3
    sine = (squares * bank.sine[:, None, None]).sum(1, keepdim=True) / 12
    moment = (cosine.square() + sine.square() + SPREAD_FLOOR).sqrt() + TINY
    return torch.cat([congruency, (total + moment) / 2, (total - moment) / 2], dim=1)


def phase_transfer_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return 1 minus Q_P, mean over the batch, for images (B, 1, H, W) in 0..1.

    Equals the metric but for the floors above. Without features in either source it is close to 1 and flat.
    """
    window = gaussian_window(11, 1.5, fused)

    def statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
        mean = separably_filtered(maps, window, 5)
        return mean, separably_filtered(maps.square(), window, 5) - mean.square()

    with torch.no_grad():
        maps_first, maps_second = phase_maps(first * 255), phase_maps(second * 255)
        selected = torch.where(maps_first[:, :1] > maps_second[:, :1], maps_first, maps_second)
        features = [(maps[:, :1] > FEATURE).to(maps.dtype) for maps in (maps_first, maps_second, selected)]
        sources = [maps * where for maps, where in zip((maps_first, maps_second, selected), features, strict=True)]
        count = features[-1].sum((1, 2, 3)).clamp(min=FEWEST_FEATURES)
    result = phase_maps(as_written(fused))
    mean, variance = statistics(result)
    correlations = []
    for source, where in zip(sources, features, strict=True):
        mean_source, variance_source = statistics(source)
        covariance = separably_filtered(source * result, window, 5) - mean_source * mean
        norm = (variance_source * variance).clamp(min=SPREAD_FLOOR).sqrt()
        correlations.append((covariance + STABILISER) / (norm + STABILISER) * where)
    best = torch.stack(correlations).amax(0)
    transfer = best.sum((2, 3)) / count[:, None]  # (B, 3)
    return 1 - transfer.clamp(min=FLOOR).prod(1).mean()
