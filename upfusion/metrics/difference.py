"""Squared difference from the sources: MSE, PSNR."""

from __future__ import annotations

import math

import numpy as np

from upfusion.metrics.sources import Image, Sources

# Identical images have no finite PSNR. Over 8-bit images of up to 4 megapixels the largest finite value is
# 114 dB; fused images lie at 10 to 25 dB. The customary ceiling keeps a mean over a data set finite.
HIGHEST_PSNR_DB = 100.0


def mse(sources: Sources, fused: Image) -> float:
    """MSE: mean over the two sources of the mean squared difference from the fused image.

    Range [0, 65025], lower is better; 0 only for A = B = F.
    """
    result = fused.astype(np.float64)
    return float(np.mean([np.mean(np.square(result - source)) for source in (sources.first, sources.second)]))


def psnr(sources: Sources, fused: Image) -> float:
    """PSNR: 10 log10(peak^2 / MSE) in dB, MSE being the mean over both sources.

    The peak is the fused image's largest level, not 255, as in the evaluation code of the paper's authors (1 for
    an all-black fused image). At most 100 dB, which is also the value of A = B = F, where the formula is infinite.
    Range [-48.2, 100]; fused images mostly 10 to 25.
    """
    error = mse(sources, fused)
    if error == 0:
        return HIGHEST_PSNR_DB
    peak = max(int(fused.max()), 1)
    return min(HIGHEST_PSNR_DB, 20 * math.log10(peak) - 10 * math.log10(error))
