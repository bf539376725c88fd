"""Linear correlation with the sources: CC, SCD."""

from __future__ import annotations

import numpy as np

from upfusion.metrics.sources import Image, Map, Sources


def correlation_coefficient(sources: Sources, fused: Image) -> float:
    """CC: mean of Pearson's correlation of the fused image with either source.

    Range [-1, 1]. The correlation with a constant image is 0/0 and counts as 0: no linear relation.
    Source: M. Deshmukh, U. Bhosale, International Journal of Image Processing 4(5), 2010.
    """
    result = _levels(fused)
    return (_pearson(_levels(sources.first), result) + _pearson(_levels(sources.second), result)) / 2


def scd(sources: Sources, fused: Image) -> float:
    """SCD: sum of the correlations of differences, r(F - B, A) + r(F - A, B).

    What F holds beyond one source should look like the other. Range [-2, 2]. A constant difference (F = A, say)
    or a constant source makes that term 0/0, which counts as 0.
    Source: V. Aslantas, E. Bendes, AEU International Journal of Electronics and Communications 69(12), 2015.
    """
    first, second, result = _levels(sources.first), _levels(sources.second), _levels(fused)
    return _pearson(result - second, first) + _pearson(result - first, second)


def _levels(image: Image) -> Map:
    return image.astype(np.float64)


def _pearson(u: Map, v: Map) -> float:
    """Return Pearson's correlation, 0 where either map is constant."""
    if u.min() == u.max() or v.min() == v.max():
        return 0.0
    u, v = u - u.mean(), v - v.mean()
    return float(np.sum(u * v) / np.sqrt(np.sum(u * u) * np.sum(v * v)))
