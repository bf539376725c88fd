"""Structural similarity: SSIM, MS-SSIM."""

from __future__ import annotations

import math

import numpy as np

from upfusion.metrics.sources import Image, Map, Sources
from upfusion.metrics.windows import box_sums_valid, filtered_valid, gaussian_kernel, mirrored_to

WINDOW = 7  # pixels, uniform weights
GAUSSIAN = gaussian_kernel(11, 1.5)
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest first


def ssim(sources: Sources, fused: Image) -> float:
    """SSIM as the paper's code computes it: uniform 7 x 7 windows, dynamic range 2, mean over the two sources.

    With means m, sample variances and covariance (divided by 48) over each window inside the image::

        (2 m1 m2 + C1)(2 cov + C2) / ((m1^2 + m2^2 + C1)(var1 + var2 + C2)),  C1 = (0.01 L)^2, C2 = (0.03 L)^2

    L = 2 although grey levels go to 255: scikit-image up to 0.19 took that for float images. The constants are so
    small that dark flat regions decide: two windows that are exactly 0 score 1, but 0 against 1 scores about 0.
    A black background that moves by one grey level can take this from 0.80 to 0.20 while the picture looks the
    same; ``SSIM_mean_range255`` goes from 0.83 to 0.75 there, so the two side by side tell such a case.

    Range [-1, 1], 1 for A = B = F. Never undefined. Below 7 pixels a side the images are mirrored out to 7.
    Source: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, IEEE TIP 13(4), 2004.
    """
    return _mean_ssim(sources, fused, dynamic_range=2.0)


def ssim_range255(sources: Sources, fused: Image) -> float:
    """SSIM_mean_range255: :func:`ssim` with L = 255, the range the grey levels have. Range [-1, 1]."""
    return _mean_ssim(sources, fused, dynamic_range=255.0)


def ms_ssim(sources: Sources, fused: Image) -> float:
    """MS-SSIM: multi-scale structural similarity, mean over the two sources.

    Gaussian windows (11 x 11, sigma 1.5, inside the image), L = 255, five scales by 2 x 2 means (an odd last row
    or column is dropped). With cs the mean contrast-structure term and s the mean SSIM at a scale::

        MS-SSIM = s_5^w5 * prod_{j < 5} cs_j^wj,   w = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333

    A negative term counts as 0. Range [0, 1], 1 for A = B = F. Below 176 pixels a side the coarse scales do not
    exist: those that do are used, with their weights scaled to sum to 1; below 11 the images are mirrored out.
    Source: Z. Wang, E. P. Simoncelli, A. C. Bovik, 37th Asilomar Conference, 2003.
    """
    return sum(_ms_ssim(source, fused) for source in (sources.first, sources.second)) / 2


def _mean_ssim(sources: Sources, fused: Image, dynamic_range: float) -> float:
    result = window_sums(fused)
    pairs = zip((sources.first, sources.second), sources.each(window_sums), strict=True)
    return sum(_uniform_ssim(source, sums, fused, result, dynamic_range) for source, sums in pairs) / 2


def window_sums(image: Image) -> tuple[Map, Map]:
    """Return the sums of the levels and of their squares over all 7 x 7 windows, exact integers."""
    levels = mirrored_to(image, WINDOW).astype(np.float64)
    return box_sums_valid(levels, WINDOW), box_sums_valid(np.square(levels), WINDOW)


def _uniform_ssim(
    source: Image, source_sums: tuple[Map, Map], fused: Image, fused_sums: tuple[Map, Map], dynamic_range: float
) -> float:
    n = WINDOW**2
    # With sums S over n pixels: mean = S / n and n (n - 1) cov = n S_uv - S_u S_v, an exact integer. Multiplying
    # numerator and denominator by n^2 and n (n - 1) leaves the constants as the only non-integers.
    c1 = (0.01 * dynamic_range) ** 2 * n**2
    c2 = (0.03 * dynamic_range) ** 2 * n * (n - 1)
    (su, squares_u), (sv, squares_v) = source_sums, fused_sums
    levels = mirrored_to(source, WINDOW).astype(np.float64)
    products = box_sums_valid(levels * mirrored_to(fused, WINDOW), WINDOW)
    cross, norms = su * sv, np.square(su) + np.square(sv)
    covariance = n * products - cross
    variances = n * (squares_u + squares_v) - norms
    return float(np.mean((2 * cross + c1) * (2 * covariance + c2) / ((norms + c1) * (variances + c2))))


def _ms_ssim(source: Image, fused: Image) -> float:
    size = GAUSSIAN.size
    u, v = (mirrored_to(image, size).astype(np.float64) for image in (source, fused))
    count = min(len(SCALE_WEIGHTS), int(math.log2(min(u.shape) / size)) + 1)
    weights = [weight / sum(SCALE_WEIGHTS[:count]) for weight in SCALE_WEIGHTS[:count]]
    value = 1.0
    for scale, weight in enumerate(weights):
        luminance, contrast = _gaussian_terms(u, v)
        last = scale == count - 1
        term = float(np.mean(luminance * contrast if last else contrast))
        value *= max(term, 0.0) ** weight
        if not last:
            u, v = _halved(u), _halved(v)
    return value


def _gaussian_terms(u: Map, v: Map) -> tuple[Map, Map]:
    """Return the luminance and the contrast-structure map for Gaussian windows and L = 255."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu, mv = filtered_valid(u, GAUSSIAN), filtered_valid(v, GAUSSIAN)
    cross, norms = mu * mv, np.square(mu) + np.square(mv)
    covariance = filtered_valid(u * v, GAUSSIAN) - cross
    variances = filtered_valid(np.square(u) + np.square(v), GAUSSIAN) - norms
    return (2 * cross + c1) / (norms + c1), (2 * covariance + c2) / (variances + c2)


def _halved(image: Map) -> Map:
    """Return the means of 2 x 2 blocks."""
    height, width = (length // 2 for length in image.shape)
    blocks: Map = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    return blocks
