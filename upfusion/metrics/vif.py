"""Visual information fidelity in the pixel domain: VIF."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from upfusion.metrics.sources import Image, Map, Sources
from upfusion.metrics.windows import filtered_valid, gaussian_kernel, mirrored_to

NOISE_VARIANCE = 2.0  # of the visual system, for grey levels 0..255
NOTHING = 1e-10  # variances below count as zero
WINDOWS = (17, 9, 5, 3)  # 2^(5 - s) + 1 at scale s = 1..4; sigma is a fifth of it


class Scale(NamedTuple):
    """One scale of one image: the pixels, and their local statistics where the window lies inside."""

    pixels: Map  # (h, w)
    kernel: Map
    mean: Map  # (h - n + 1, w - n + 1)
    variance: Map  # same, not negative


def vif(sources: Sources, fused: Image) -> float:
    """VIF: mean over the two sources of VIFP(source, fused), the source being the reference.

    For s = 1..4 with a Gaussian window of N = 17, 9, 5, 3 pixels (sigma N / 5, only windows inside the image; for
    s > 1 both images are first filtered with it and every second row and column kept), per window::

        g = cov(R, D) / var R,   v = var D - g cov(R, D)          (degenerate windows: see the code)
        VIFP = sum_s sum log(1 + g^2 var R / (v + 2)) / sum_s sum log(1 + var R / 2)

    Range [0, about 1]; above 1 is possible when the fused image has more contrast. Many papers print the sum over
    the sources, twice this value.

    A constant source has no information and counts as 1, nothing was lost (0/0 in the formula; the authors'
    evaluation code does the same); a constant fused image gives 0 with any other source. Below 41 pixels a side
    the scales that still exist are summed; below 17 the images are mirrored out to 17.
    Source: H. R. Sheikh, A. C. Bovik, IEEE TIP 15(2), 2006, 430-444, multi-scale pixel-domain form.
    """
    reference, distorted = sources.each(scales), scales(fused)
    constant = [source.min() == source.max() for source in (sources.first, sources.second)]
    ratios = [1.0 if flat else _vifp(of, distorted) for of, flat in zip(reference, constant, strict=True)]
    return sum(ratios) / 2


def scales(image: Image) -> list[Scale]:
    """Return the scales that exist for an image of this size, finest first."""
    pixels = mirrored_to(image, WINDOWS[0]).astype(np.float64)
    found: list[Scale] = []
    for size in WINDOWS:
        kernel = gaussian_kernel(size, size / 5)
        if found:
            pixels = np.ascontiguousarray(filtered_valid(pixels, kernel)[::2, ::2])
        if min(pixels.shape) < size:
            break
        mean = filtered_valid(pixels, kernel)
        variance = filtered_valid(np.square(pixels), kernel) - np.square(mean)
        found.append(Scale(pixels, kernel, mean, np.maximum(variance, 0, out=variance)))
    return found


def _vifp(reference: list[Scale], distorted: list[Scale]) -> float:
    """Return the information of the reference that arrives in the distorted image, as a ratio."""
    arrived = available = 0.0
    for r, d in zip(reference, distorted, strict=True):
        covariance = filtered_valid(r.pixels * d.pixels, r.kernel) - r.mean * d.mean
        gain = covariance / (r.variance + NOTHING)
        noise = d.variance - gain * covariance
        # In this order: a flat reference, a flat distorted window, inverted contrast, no noise at all.
        flat = r.variance < NOTHING
        gain[flat] = 0
        np.copyto(noise, d.variance, where=flat)
        signal = np.where(flat, 0, r.variance)
        lost = d.variance < NOTHING
        gain[lost] = 0
        noise[lost] = 0
        inverted = gain < 0
        np.copyto(noise, d.variance, where=inverted)
        gain[inverted] = 0
        np.maximum(noise, NOTHING, out=noise)
        arrived += float(np.sum(np.log1p(np.square(gain) * signal / (noise + NOISE_VARIANCE))))
        available += float(np.sum(np.log1p(signal / NOISE_VARIANCE)))
    return arrived / available if available else 1.0
