"""Simple fusion methods to compare with: average, maximum, Laplacian pyramid, guided filter.

Each takes and returns (H, W) uint8 grey images of one size. They know nothing of modalities.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from upfusion.runtime.images import Image, gray8

Gray = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

PYRAMID_LEVELS = 4


def average(first: Gray, second: Gray) -> Gray:
    """Return floor((A + B + 1) / 2)."""
    total = first.astype(np.uint16) + second + 1
    return (total >> 1).astype(np.uint8)


def maximum(first: Gray, second: Gray) -> Gray:
    """Return the larger level at each pixel."""
    return np.maximum(first, second)


def laplacian_pyramid(first: Gray, second: Gray) -> Gray:
    """Return the fusion of two Laplacian pyramids of up to 4 levels.

    Detail: the coefficient of larger magnitude; base: the mean. P. J. Burt, E. H. Adelson, IEEE Transactions on
    Communications 31(4), 1983. Levels stop before a side falls below 8 pixels.
    """
    levels = max(0, min(PYRAMID_LEVELS, int(math.log2(min(first.shape) / 8)) if min(first.shape) >= 8 else 0))
    details_a, base_a = _pyramid(first, levels)
    details_b, base_b = _pyramid(second, levels)
    fused = (base_a + base_b) * np.float32(0.5)
    for a, b in zip(reversed(details_a), reversed(details_b), strict=True):
        fused = _expanded(fused, a.shape) + np.where(np.abs(a) >= np.abs(b), a, b)
    return _levels(fused)


def guided_filter(first: Gray, second: Gray) -> Gray:
    """Return the two-scale fusion with guided filtering (GFF).

    Base (31 x 31 mean) and detail are weighted by maps of which source has the larger saliency (Gaussian of
    |Laplacian|), smoothed by a guided filter with the source as guide: radius 45, eps 0.3 for the base, radius 7,
    eps 1e-6 for the detail, levels 0..1. S. Li, X. Kang, J. Hu, IEEE TIP 22(7), 2013, 2864-2875.
    """
    planes = [image.astype(np.float32) / np.float32(255) for image in (first, second)]
    saliency = [cv2.GaussianBlur(np.abs(cv2.Laplacian(plane, cv2.CV_32F)), (11, 11), 5) for plane in planes]
    first_wins = (saliency[0] >= saliency[1]).astype(np.float32)
    chosen = (first_wins, 1 - first_wins)
    bases = [cv2.blur(plane, (31, 31)) for plane in planes]
    details = [plane - base for plane, base in zip(planes, bases, strict=True)]
    fused = np.zeros_like(planes[0])
    for parts, radius, eps in ((bases, 45, 0.3), (details, 7, 1e-6)):
        weights = [_guided(plane, where, radius, eps) for plane, where in zip(planes, chosen, strict=True)]
        total = weights[0] + weights[1]
        share = np.clip(np.divide(weights[0], total, out=np.full_like(total, 0.5), where=np.abs(total) > 1e-6), 0, 1)
        fused += share * parts[0] + (1 - share) * parts[1]
    return _levels(fused * 255)


BASELINES: dict[str, Callable[[Gray, Gray], Gray]] = {
    "average": average,
    "maximum": maximum,
    "laplacian": laplacian_pyramid,
    "guided filter": guided_filter,
}


def on_luma(baseline: Callable[[Gray, Gray], Gray]) -> Callable[[Image, Image], Gray]:
    """Return the baseline as a method on image pairs: colour becomes luma, 16 bit becomes 8."""
    return lambda first, second: baseline(gray8(first), gray8(second))


def _pyramid(image: Gray, levels: int) -> tuple[list[Plane], Plane]:
    """Return the details, finest first, and the base."""
    plane: Plane = image.astype(np.float32)
    details: list[Plane] = []
    for _ in range(levels):
        smaller = np.asarray(cv2.pyrDown(plane), np.float32)
        details.append(plane - _expanded(smaller, plane.shape))
        plane = smaller
    return details, plane


def _expanded(plane: Plane, shape: tuple[int, ...]) -> Plane:
    return np.asarray(cv2.pyrUp(plane, dstsize=(shape[1], shape[0])), np.float32)


def _guided(guide: Plane, target: Plane, radius: int, eps: float) -> Plane:
    """Return ``target`` filtered with ``guide``: locally a linear function of it (He, Sun, Tang, PAMI 2013)."""

    def mean(plane: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        # float64: variances of flat regions are small differences of means.
        return np.asarray(cv2.boxFilter(plane, cv2.CV_64F, (2 * radius + 1, 2 * radius + 1)), np.float64)

    guide64, target64 = guide.astype(np.float64), target.astype(np.float64)
    mean_guide, mean_target = mean(guide64), mean(target64)
    slope = (mean(guide64 * target64) - mean_guide * mean_target) / (mean(guide64**2) - mean_guide**2 + eps)
    offset = mean_target - slope * mean_guide
    return (mean(slope) * guide64 + mean(offset)).astype(np.float32)


def _levels(plane: Plane) -> Gray:
    return np.clip(np.rint(plane), 0, 255).astype(np.uint8)
