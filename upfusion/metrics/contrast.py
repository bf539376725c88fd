"""How much contrast the fused image has by itself: SD, SF, AG."""

from __future__ import annotations

import math

import numpy as np

from upfusion.metrics.sources import Image, Map, Sources


def standard_deviation(sources: Sources, fused: Image) -> float:
    """SD: standard deviation of the fused image's grey levels.

    sqrt(mean((F - mean F)^2)). Range [0, 127.5]; 0 for a constant image. The sources are not looked at.
    Source: Y.-J. Rao, Measurement Science and Technology 8(4), 1997.
    """
    return float(np.std(fused, dtype=np.float64))


def spatial_frequency(sources: Sources, fused: Image) -> float:
    """SF: root of the mean squared horizontal plus the mean squared vertical difference of neighbours.

    Range [0, 255 sqrt 2 = 360.6]; 0 for a constant image. A direction with a single pixel contributes 0.
    Source: A. M. Eskicioglu, P. S. Fisher, IEEE Transactions on Communications 43(12), 1995, 2959-2965.
    """
    levels = fused.astype(np.float64)
    return math.sqrt(sum(_mean_square(np.diff(levels, axis=axis)) for axis in (0, 1)))


def average_gradient(sources: Sources, fused: Image) -> float:
    """AG: mean over all pixels of sqrt((Gx^2 + Gy^2) / 2).

    G are central differences, one-sided at the borders (the widespread MATLAB version divides by
    (H - 1)(W - 1) instead of H W). Range [0, 255]; 0 for a constant image; a direction with a single pixel has
    no gradient. Source: G. Cui et al., Optics Communications 341, 2015, 199-209.
    """
    levels = fused.astype(np.float64)
    squares = sum(np.square(np.gradient(levels, axis=axis)) for axis in (0, 1) if levels.shape[axis] > 1)
    return float(np.mean(np.sqrt(squares / 2)))


def _mean_square(differences: Map) -> float:
    return float(np.mean(np.square(differences))) if differences.size else 0.0
