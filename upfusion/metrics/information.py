"""Entropy and mutual information of grey-level histograms: EN, MI, NMI, Q_NCIE."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from upfusion.metrics.sources import Image, Sources


def entropy(sources: Sources, fused: Image) -> float:
    """EN: Shannon entropy of the fused image's 256 grey levels, in bits.

    -sum p log2 p. Range [0, 8]; a constant image has 0. The sources are not looked at.
    Source: J. W. Roberts et al., Journal of Applied Remote Sensing 2(1), 2008.
    """
    return _entropy_bits(fused)


def mutual_information(sources: Sources, fused: Image) -> float:
    """MI: mutual information of the fused image with the first plus with the second source, in nats.

    I(F; A) + I(F; B) over the 256 x 256 joint histograms. Range [0, 2 ln 256 = 11.09]; 0 for a constant image.
    Source: G. Qu, D. Zhang, P. Yan, Electronics Letters 38(7), 2002, 313-315.
    """
    bits = sum(_mutual_bits(source, fused) for source in (sources.first, sources.second))
    return bits * math.log(2)


def normalised_mutual_information(sources: Sources, fused: Image) -> float:
    """NMI (Q_MI): mutual information relative to the entropies it can come from.

    2 (I(F; A) / (H(F) + H(A)) + I(F; B) / (H(F) + H(B))). Range [0, 2], 2 for A = B = F.
    A term whose two images are both constant is 0/0 and counts as 0: nothing was shared.
    Source: M. Hossny, S. Nahavandi, D. Creighton, Electronics Letters 44(18), 2008, 1066-1067.
    """
    total = 0.0
    for source in (sources.first, sources.second):
        both = _entropy_bits(source) + _entropy_bits(fused)
        if both > 0:
            total += 2 * _mutual_bits(source, fused) / both
    return total


def q_ncie(sources: Sources, fused: Image) -> float:
    """Q_NCIE: nonlinear correlation information entropy.

    NCC(u, v) = H(u) + H(v) - H(u, v) with logarithms to base 256 is the nonlinear correlation of two images.
    With l1..l3 the eigenvalues of the 3 x 3 matrix of NCC between A, B and F (ones on the diagonal)::

        Q_NCIE = 1 + sum_i (l_i / 3) log_256 (l_i / 3)

    Range [1 - log_256 3, 1] = [0.80188, 1]; fused images mostly 0.803 to 0.84. NCC(u, u) is H(u) rather than 1,
    so A = B = F stays below 1.

    A constant image has entropy 0 and correlates with nothing (the reference fails there, except for an all-zero
    one, which it treats like this). The reference first stretches each image to 0..255; that only renames grey
    levels (integers at least one apart stay apart) and leaves every entropy as it is, so it is not done here.
    Source: Q. Wang, Y. Shen, J. Jin, ch. 19 in T. Stathaki (ed.), Image Fusion, 2008.
    """
    first, second = sources.first, sources.second
    between = sources.kept(_mutual_bits_of_sources) / 8
    with_first, with_second = _mutual_bits(first, fused) / 8, _mutual_bits(second, fused) / 8
    correlation = np.array([[1, between, with_first], [between, 1, with_second], [with_first, with_second, 1]])
    share = np.linalg.eigvalsh(correlation) / 3
    share = share[share > 0]  # 0 log 0 = 0; a rounding error may turn a zero eigenvalue negative
    return float(1 + np.sum(share * np.log2(share)) / 8)


def _mutual_bits_of_sources(sources: Sources) -> float:
    return _mutual_bits(sources.first, sources.second)


def _mutual_bits(u: Image, v: Image) -> float:
    """Return H(u) + H(v) - H(u, v) in bits; never negative."""
    pairs = (u.astype(np.uint16) << 8 | v).ravel()
    joint = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    return max(0.0, _bits(joint.sum(axis=1)) + _bits(joint.sum(axis=0)) - _bits(joint))


def _entropy_bits(image: Image) -> float:
    return _bits(np.bincount(image.ravel(), minlength=256))


def _bits(counts: npt.NDArray[np.intp]) -> float:
    """Return the entropy of a histogram in bits, 0 log 0 being 0."""
    occupied = counts[counts > 0] / counts.sum()
    return float(-np.sum(occupied * np.log2(occupied))) + 0.0  # + 0.0 turns -0.0 into 0.0
