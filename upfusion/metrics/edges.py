"""Transfer of edges from the sources to the fused image: Q^{AB/F}."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from upfusion.metrics.sources import Image, Map, Sources

# Xydeas and Petrovic's constants: ceiling, slope and midpoint of the two sigmoids.
STRENGTH_CEILING, STRENGTH_SLOPE, STRENGTH_MIDPOINT = 0.9994, -15.0, 0.5
ANGLE_CEILING, ANGLE_SLOPE, ANGLE_MIDPOINT = 0.9879, -22.0, 0.8

# Same angle, and same strength: equal strengths enter in grey levels, so the sigmoid is at its ceiling.
QABF_OF_PERFECT_TRANSFER = STRENGTH_CEILING * ANGLE_CEILING / (1 + math.exp(ANGLE_SLOPE * (1 - ANGLE_MIDPOINT)))


class Edges(NamedTuple):
    """Sobel gradient of an image; both maps (H, W) float64."""

    strength: Map  # grey levels, Sobel sums not divided by 8
    angle: Map  # radians, (-pi/2, pi/2]


def qabf(sources: Sources, fused: Image) -> float:
    """Q^{AB/F}: how much of the sources' edge strength and direction the fused image keeps.

    With g and alpha from Sobel filters (true convolution, zeros beyond the border, so that a bright border is an
    edge), for source X: G is the smaller over the larger of g_X and g_F, a = 1 - |alpha_X - alpha_F| / (pi/2), ::

        Q_X  = 0.9994 / (1 + exp(-15 (G - 0.5))) * 0.9879 / (1 + exp(-22 (a - 0.8)))
        Qabf = sum(Q_A g_A + Q_B g_B) / sum(g_A + g_B)

    Where g_X = g_F the reference takes G = g_F in grey levels, and so does this: 0 where both are flat.
    Range [0, 0.9753]; fused images mostly 0.3 to 0.75. Sums of integers 0..255 are exact here, which the
    comparisons for equality and zero need; images scaled to 0..1 would give another value.

    Sources without any gradient (all black, because of the zero padding) make it 0/0: the value is then that of
    perfect transfer, 0.9753, if the fused image has no gradient either, and 0 otherwise.
    Source: C. S. Xydeas, V. Petrovic, Electronics Letters 36(4), 2000, 308-309.
    """
    found = sources.each(edges)
    result = edges(fused)
    total = sum(float(np.sum(source.strength)) for source in found)
    if total == 0:
        return 0.0 if result.strength.any() else QABF_OF_PERFECT_TRANSFER
    return sum(_preserved(source, result) for source in found) / total


def edges(image: Image) -> Edges:
    """Return the Sobel gradient's strength and angle; the angle is pi/2 where the horizontal part is 0."""
    # OpenCV correlates; turning its horizontal kernel round (the sign) makes it the convolution of the definition.
    # The vertical one is the definition's kernel already turned. int16 holds the sums (up to 1020) exactly.
    horizontal = -cv2.Sobel(image, cv2.CV_16S, 1, 0, ksize=3, borderType=cv2.BORDER_CONSTANT).astype(np.float64)
    vertical = cv2.Sobel(image, cv2.CV_16S, 0, 1, ksize=3, borderType=cv2.BORDER_CONSTANT).astype(np.float64)
    slope = np.full_like(vertical, np.inf)  # arctan(inf) = pi/2
    np.divide(vertical, horizontal, out=slope, where=horizontal != 0)
    strength = np.sqrt(np.square(horizontal) + np.square(vertical))
    return Edges(strength, np.arctan(slope))


def _preserved(source: Edges, fused: Edges) -> float:
    """Return sum(Q_X g_X) for one source."""
    larger = np.maximum(source.strength, fused.strength)
    ratio = np.minimum(source.strength, fused.strength)
    differs = larger != ratio
    np.divide(ratio, larger, out=ratio, where=differs)  # equal strengths stay in grey levels
    agreement = 1 - np.abs(source.angle - fused.angle) / (math.pi / 2)
    # One division for both sigmoids.
    steps = 1 + np.exp(STRENGTH_SLOPE * (ratio - STRENGTH_MIDPOINT))
    steps *= 1 + np.exp(ANGLE_SLOPE * (agreement - ANGLE_MIDPOINT))
    return STRENGTH_CEILING * ANGLE_CEILING * float(np.sum(source.strength / steps))
