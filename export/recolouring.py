"""Crops in colours and brightnesses that the pairs of a calibration do not have."""

from __future__ import annotations

import torch
from torch import Tensor

DARKEST, BRIGHTEST = 0.5, 2.0
"""Exponents between which the second image's grey levels are bent."""


def with_recoloured(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the crops, and behind them each one once more in other colours; the same ones every time.

    One network fuses modalities that look nothing alike, and a calibration may have met only some of them. Weights
    that are rounded for the colours of a few crops (``upfusion.export.rounding``) fit only those: after infrared, PET
    and CT, a pair of fluorescence and phase contrast came out 1.2 levels too bright (42.0 dB), with these crops besides
    0.1 too dark (52.5 dB; benchmarks/precision.py, 2026-12-01). The first image's channels are scaled by shares of
    their own, so that it takes any tint; the second is inverted in every other crop and bent by a power in the rest.

    Args:
        first: (B, 3, H, W) in [0, 1].
        second: (B, 1, H, W) in [0, 1].

    Returns:
        (2 B, 3, H, W) and (2 B, 1, H, W).
    """
    count = len(first)
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(count, 3, 1, 1, generator=generator)
    powers = DARKEST + (BRIGHTEST - DARKEST) * torch.rand(count, 1, 1, 1, generator=generator)
    inverted = (torch.arange(count) % 2 == 0)[:, None, None, None]
    tinted = first * shares
    bent = torch.where(inverted, 1 - second, second**powers)
    return torch.cat([first, tinted]), torch.cat([second, bent])
