"""Transfer of phase congruency from the sources to the fused image: Q_P."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from upfusion.metrics.phase_congruency import PhaseMaps, phase_maps
from upfusion.metrics.sources import Image, Map, Sources
from upfusion.metrics.windows import filtered_same, gaussian_kernel

FEATURE = 0.1  # phase congruency above which a pixel counts as a feature
STABILISER = 1e-4
GAUSSIAN = gaussian_kernel(11, 1.5)


class Masked(NamedTuple):
    """One map of one source on its feature pixels, 0 elsewhere, with local statistics; all (H, W)."""

    values: Map
    mean: Map
    variance: Map
    features: npt.NDArray[np.bool_]


def q_p(sources: Sources, fused: Image) -> float:
    """Q_P: how well phase congruency and its moments are transferred.

    At each pixel the source with the larger phase congruency gives a third, selected source S. For each kind of
    map (pc, maximum moment, minimum moment), with the sources' maps on their feature pixels (pc > 0.1) and local
    statistics over 11 x 11 Gaussian windows (sigma 1.5, zeros beyond the border)::

        c_k = (cov(Z_k, Z_F) + 1e-4) / (sqrt|var Z_k var Z_F| + 1e-4) on the features of k = A, B, S, else 0
        P   = sum of max_k c_k / number of features of S,            Q_P = P_pc P_M P_m

    Range [-1, 1]: the features of S are those of A and B together, so each P is a mean of correlations. Fused
    images mostly 0.2 to 0.7.

    Where the formula has no value or a misleading one: without features in either source (constant images) there
    is nothing to transfer, so 1 if the fused image has none either and 0 otherwise; sources with features and a
    fused image whose phase congruency is 0 everywhere (constant) give 0, while the formula would give 1, because
    all variances vanish. The reference answers NaN for all of these, and for a single constant source, which is
    well defined here: its maps are 0 and the other source counts.
    Source: J. Zhao, R. Laganiere, Z. Liu, IJICIC 3(6A), 2007, 1433-1447.
    """
    selected = sources.kept(_masked_maps)
    result = phase_maps(fused)
    features = int(np.count_nonzero(selected[0][-1].features))
    if features == 0:
        return 0.0 if (result.congruency > FEATURE).any() else 1.0
    if not result.congruency.any():
        return 0.0
    value = 1.0
    for of_kind, plane in zip(selected, result, strict=True):
        value *= float(np.sum(_best_correlation(of_kind, plane))) / features
    return value


def _masked_maps(sources: Sources) -> tuple[tuple[Masked, Masked, Masked], ...]:
    """Return for each kind of map what Q_P needs of the first, the second and the selected source."""
    first, second = sources.each(phase_maps)
    stronger = first.congruency > second.congruency
    selected = PhaseMaps(*(np.where(stronger, a, b) for a, b in zip(first, second, strict=True)))
    features = [maps.congruency > FEATURE for maps in (first, second, selected)]
    first_kinds, second_kinds, selected_kinds = (
        [_masked(plane, where) for plane in maps]
        for maps, where in zip((first, second, selected), features, strict=True)
    )
    return tuple(zip(first_kinds, second_kinds, selected_kinds, strict=True))


def _masked(plane: Map, features: npt.NDArray[np.bool_]) -> Masked:
    values = plane * features
    return Masked(values, *_statistics(values), features)


def _statistics(plane: Map) -> tuple[Map, Map]:
    """Return the local mean and variance."""
    mean = filtered_same(plane, GAUSSIAN)
    return mean, filtered_same(np.square(plane), GAUSSIAN) - np.square(mean)


def _best_correlation(of_kind: tuple[Masked, Masked, Masked], plane: Map) -> Map:
    """Return max over k of c_k at each pixel, 0 outside k's features."""
    mean, variance = _statistics(plane)
    best = np.full(plane.shape, -np.inf)
    for masked in of_kind:
        covariance = filtered_same(masked.values * plane, GAUSSIAN)
        covariance -= masked.mean * mean
        covariance += STABILISER
        norm = np.sqrt(np.abs(masked.variance * variance))
        norm += STABILISER
        covariance /= norm
        covariance *= masked.features
        np.maximum(best, covariance, out=best)
    return best
