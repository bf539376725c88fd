"""Feature mutual information of local windows: FMI."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from upfusion.metrics.sources import Image, Map, Sources
from upfusion.metrics.windows import mirrored_to

Values = npt.NDArray[np.float64]  # (N,), one per window

WINDOW = 3
WINDOWS_AT_ONCE = 1 << 11  # keeps the joint distributions, 81 float64 per window, in a 2 MB cache


def fmi(sources: Sources, fused: Image) -> float:
    """FMI: mean normalised mutual information of gradient features in 3 x 3 windows, mean over the two sources.

    The feature map is the gradient magnitude (central differences, one-sided at the borders). In a window, the
    nine features less their minimum and scaled to sum 1 are taken as the distribution of a position 1..9 (column by
    column; uniform where they are equal). The joint distribution of two windows is estimated from the marginals F, G
    and the correlation r of the features: independence mixed with a Frechet bound, ::

        h = t h_bound + (1 - t) p q,    H_bound = min(F, G) if r >= 0 else max(F + G - 1, 0)

    with t = r / r_bound cut to 0..1, r_bound being the correlation of positions under the bound, whose covariance is
    sum(H_bound - F G) (Hoeffding). The window's value is 2 I / (H(p) + H(q)); equal features give 1.

    Range [0, 1]. A window whose entropies are both 0 counts as 1 (each has its whole feature at one position,
    known in advance). Images below 3 pixels a side are mirrored out to 3.
    Source: M. Haghighat, A. Aghagolzadeh, H. Seyedarabi, Computers & Electrical Engineering 37(5), 2011;
    windows and normalisation: M. Haghighat, M. A. Razian, AICT 2014. There is no reference value to compare
    with: published numbers depend on the feature and on the window.
    """
    result = features(fused)
    return sum(_mean_information(source, result) for source in sources.each(features)) / 2


def features(image: Image) -> Map:
    """Return the gradient magnitude of the image, at least 3 x 3."""
    levels = mirrored_to(image, WINDOW).astype(np.float64)
    vertical, horizontal = np.gradient(levels)
    magnitude: Map = np.hypot(vertical, horizontal)
    return magnitude


def _mean_information(source: Map, fused: Map) -> float:
    u, v = _windows(source), _windows(fused)
    count = len(u[0])
    batches = (slice(start, start + WINDOWS_AT_ONCE) for start in range(0, count, WINDOWS_AT_ONCE))
    return math.fsum(float(np.sum(_information(u[:, batch], v[:, batch]))) for batch in batches) / count


def _windows(plane: Map) -> Map:
    """Return all N windows as columns (9, N), positions column by column."""
    windows = sliding_window_view(plane, (WINDOW, WINDOW))
    return np.ascontiguousarray(windows.transpose(3, 2, 0, 1)).reshape(WINDOW**2, -1)


def _information(u: Map, v: Map) -> Values:
    """Return the normalised mutual information of each pair of windows (9, N), (9, N): (N,)."""
    correlation = _correlation(u, v)
    p, q = _distribution(u), _distribution(v)
    # The lower bound couples p with q the other way round. Turning q for those windows leaves every entropy as it
    # is and makes their bound an upper one and their correlation positive.
    q = np.where(correlation < 0, q[::-1], q)
    f, g = np.cumsum(p, axis=0), np.cumsum(q, axis=0)
    covariance = np.minimum(f[:, None], g[None]).sum(axis=(0, 1)) - f.sum(axis=0) * g.sum(axis=0)
    mixed = np.zeros_like(correlation)
    np.divide(np.abs(correlation) * _deviation(p) * _deviation(q), covariance, out=mixed, where=covariance > 0)
    np.clip(mixed, 0, 1, out=mixed)
    joint = _upper_bound(f, g)
    joint *= mixed
    joint += ((1 - mixed) * p)[:, None] * q[None]
    separate = _entropy(p) + _entropy(q)
    value = np.ones_like(correlation)
    np.divide(2 * (separate - _entropy(joint.reshape(-1, len(value)))), separate, out=value, where=separate > 0)
    value[np.all(u == v, axis=0)] = 1
    return np.clip(value, 0, 1)


def _distribution(windows: Map) -> Map:
    """Return each window less its minimum, scaled to sum 1; uniform where all are equal."""
    raised = windows - windows.min(axis=0)
    total = raised.sum(axis=0)
    uniform: Map = np.full_like(raised, 1 / len(windows))
    np.divide(raised, total, out=uniform, where=total > 0)
    return uniform


def _correlation(u: Map, v: Map) -> Values:
    """Return Pearson's correlation of each pair of windows, 0 where one is constant."""
    varying = (u.min(axis=0) < u.max(axis=0)) & (v.min(axis=0) < v.max(axis=0))
    u, v = u - u.mean(axis=0), v - v.mean(axis=0)
    norm = np.sqrt(np.sum(u * u, axis=0) * np.sum(v * v, axis=0))
    value: Values = np.zeros_like(norm)
    np.divide(np.sum(u * v, axis=0), norm, out=value, where=varying & (norm > 0))
    return value


def _upper_bound(f: Map, g: Map) -> npt.NDArray[np.float64]:
    """Return the probabilities (9, 9, N) of the joint distribution min(F, G), F and G cumulative."""
    before_f, before_g = np.zeros_like(f), np.zeros_like(g)
    before_f[1:], before_g[1:] = f[:-1], g[:-1]
    overlap = np.minimum(f[:, None], g[None])
    overlap -= np.maximum(before_f[:, None], before_g[None])
    return np.maximum(overlap, 0, out=overlap)


def _deviation(p: Map) -> Values:
    """Return the standard deviation of the position."""
    position = np.arange(1.0, len(p) + 1)
    return np.sqrt(np.maximum(position**2 @ p - np.square(position @ p), 0))


def _entropy(p: Map) -> Values:
    """Return the entropy of each column in nats, 0 log 0 being 0."""
    logarithm = np.maximum(p, 1e-300)
    np.log(logarithm, out=logarithm)
    logarithm *= p
    entropy: Values = -logarithm.sum(axis=0)
    return entropy
