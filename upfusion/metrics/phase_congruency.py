"""Phase congruency of an image: where its frequency components agree in phase, that is, features of any contrast.

P. Kovesi, Videre 1(3), 1999, in the version of the fusion metric toolbox of Liu et al. (TPAMI 34(1), 2012),
``myphasecong3``, with its odd sizes and its scaling of the covariance of features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from upfusion.metrics.sources import Image, Map

Half = npt.NDArray[np.float64]  # (H, W // 2 + 1), the half of the frequency plane a real transform needs
HalfSpectrum = npt.NDArray[np.complex128]  # same shape

SCALES = 4
ORIENTATIONS = 6
SHORTEST_WAVELENGTH_PX = 3.0
WAVELENGTH_FACTOR = 2.1
RADIAL_SPREAD = 0.55  # sigma of the log-Gabor filter relative to its centre frequency
ANGULAR_SPREAD = math.pi / ORIENTATIONS / 1.2  # radians, sigma
LOW_PASS_CUTOFF = 0.45
NOISE_DEVIATIONS = 2.0
NOISE_SHRINK = 1.7
SPREAD_CUTOFF, SPREAD_GAIN = 0.5, 10.0
TINY = 1e-4
SLAB_PIXELS = 1 << 13


class PhaseMaps(NamedTuple):
    """Phase congruency of an image; three (H, W) float64 maps, not negative up to rounding."""

    congruency: Map  # pc, 0..1
    maximum_moment: Map  # M, edges
    minimum_moment: Map  # m, corners


class Parts(NamedTuple):
    """A real function f(k) of frequency on the half plane, split under k -> -k."""

    even: Half
    odd: Half | None  # None where it vanishes

    def times(self, other: Parts) -> tuple[Half, Half]:
        """Return the even and odd part of the product; ``other`` has both parts."""
        assert other.odd is not None
        even, odd = self.even * other.even, self.even * other.odd
        if self.odd is not None:
            even += self.odd * other.odd
            odd += self.odd * other.even
        return even, odd


class FilterBank(NamedTuple):
    """The 4 x 6 log-Gabor filters for one image size: f_so(k) = radial_s(k) angular_o(k).

    The image is real, so with f split into its even and odd part, the real part of ifft2(F f) is
    irfft2(F f_even) and the imaginary part irfft2(-i F f_odd): two real transforms instead of a complex one, and
    planes instead of interleaved pairs.
    """

    radial: list[Parts]  # per scale; even for even sizes
    angular: list[Parts]  # per orientation
    finest_energy: list[float]  # per orientation: sum of f_0o^2
    noise_energy: list[float]  # per orientation: sum over k of (sum_s even part of f_so)^2


def phase_maps(image: Image) -> PhaseMaps:
    """Return the phase congruency maps of an (H, W) image of grey levels 0..255.

    Per orientation, with E + i O = ifft2(fft2(I) f_s) and An = |E + i O| at scale s::

        X      = sqrt((sum E)^2 + (sum O)^2) + 1e-4
        Energy = sum_s (E mE + O mO - |E mO - O mE|) - T, not below 0;   mE = sum E / X, mO = sum O / X
        Weight = 1 / (1 + exp(10 (0.5 - sum An / (max An + 1e-4) / 4)))

    with T the noise threshold from the median response at the finest scale. Then pc is
    sum_o Weight Energy / (sum_o sum An + 1e-4), and the moments come from PC_o = Weight Energy / sum An.

    A constant image has no response anywhere (0/0 in PC_o): its maps are 0, and so is PC_o wherever sum An is 0.
    """
    shape = image.shape
    if image.min() == image.max():
        return PhaseMaps(*(np.zeros(shape) for _ in PhaseMaps._fields))
    bank = filter_bank(shape)
    spectrum = np.fft.rfft2(image.astype(np.float64))
    turned = -1j * spectrum
    even, odd = np.empty((SCALES, *shape)), np.empty((SCALES, *shape))
    energies, amplitudes = np.zeros(shape), np.full(shape, TINY)
    # Sums over orientations of PC_o^2 times 1, cos 2a and sin 2a give the three second moments.
    total, cosine, sine = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for orientation in range(ORIENTATIONS):
        for scale in range(SCALES):
            even_part, odd_part = bank.radial[scale].times(bank.angular[orientation])
            _inverse(spectrum * even_part, out=even[scale])
            _inverse(turned * odd_part, out=odd[scale])
        threshold = _noise_threshold(even[0], odd[0], bank, orientation)
        double_angle = 2 * orientation * math.pi / ORIENTATIONS
        for rows in _slabs(shape):
            energy, amplitude = _weighted_energy(even[:, rows], odd[:, rows], threshold)
            energies[rows] += energy
            amplitudes[rows] += amplitude
            np.divide(energy, amplitude, out=energy, where=amplitude > 0)  # the energy is 0 where the amplitude is
            square = np.square(energy)
            total[rows] += square
            cosine[rows] += square * math.cos(double_angle)
            sine[rows] += square * math.sin(double_angle)
    # With cx2 = sum (PC_o cos a)^2 / 3, cy2 likewise and cxy = sum PC_o^2 cos a sin a / 6 (the toolbox's scaling;
    # Kovesi's later code has another): cx2 + cy2 = total / 3, cx2 - cy2 = cosine / 3, cxy = sine / 12.
    spread = np.sqrt(np.square(cosine / 3) + np.square(sine / 12)) + TINY
    total /= 3
    return PhaseMaps(energies / amplitudes, (total + spread) / 2, (total - spread) / 2)


def _inverse(half_spectrum: HalfSpectrum, out: Map) -> None:
    """Write irfft2 of the half spectrum, which is overwritten, to ``out``.

    Without fresh arrays of full size: their page faults would cost as much as the transform.
    """
    np.fft.ifft(half_spectrum, axis=0, out=half_spectrum)
    np.fft.irfft(half_spectrum, n=out.shape[1], axis=1, out=out)


def _slabs(shape: tuple[int, int]) -> Iterator[slice]:
    """Yield slices of rows that keep the dozen planes of :func:`_weighted_energy` in a 2 MB cache."""
    rows = max(1, SLAB_PIXELS // shape[1])
    for top in range(0, shape[0], rows):
        yield slice(top, top + rows)


def _weighted_energy(even: npt.NDArray[np.float64], odd: npt.NDArray[np.float64], threshold: float) -> tuple[Map, Map]:
    """Return Weight Energy and the sum of amplitudes from the responses (4, h, W) of one orientation."""
    amplitude = np.square(even)
    amplitude += np.square(odd)
    np.sqrt(amplitude, out=amplitude)
    amplitudes, largest = amplitude.sum(axis=0), amplitude.max(axis=0)
    even_sum, odd_sum = even.sum(axis=0), odd.sum(axis=0)
    # sum_s (E mE + O mO) = ((sum E)^2 + (sum O)^2) / X
    square = np.square(even_sum) + np.square(odd_sum)
    deviation = np.multiply(even, odd_sum, out=amplitude)
    deviation -= odd * even_sum
    deviation = np.abs(deviation, out=deviation).sum(axis=0)
    energy = np.maximum((square - deviation) / (np.sqrt(square) + TINY) - threshold, 0)
    spread = amplitudes / (largest + TINY) / SCALES
    return energy / (1 + np.exp(SPREAD_GAIN * (SPREAD_CUTOFF - spread))), amplitudes


def _noise_threshold(even: Map, odd: Map, bank: FilterBank, orientation: int) -> float:
    """Return T from the response at the finest scale.

    With w_s = real(ifft2(f_so)) sqrt(H W) the definition sums w_s w_t over pixels; by Parseval that is the sum
    of the product of the filters' even parts over frequencies.
    """
    median = float(np.median(np.square(even) + np.square(odd)))
    power = median / math.log(2) / bank.finest_energy[orientation]
    tau = math.sqrt(power * bank.noise_energy[orientation])
    return tau * (math.sqrt(math.pi / 2) + NOISE_DEVIATIONS * math.sqrt(2 - math.pi / 2)) / NOISE_SHRINK


@functools.lru_cache(maxsize=2)  # the pairs of a data set mostly have one size; 24 MB at 480x640
def filter_bank(shape: tuple[int, int]) -> FilterBank:
    """Return the filters for images of (height, width) ``shape``."""
    y, x = np.meshgrid(*(_frequencies(length) for length in shape), indexing="ij")
    radius, angle = np.sqrt(np.square(x) + np.square(y)), np.arctan2(-y, x)
    radius[shape[0] // 2, shape[1] // 2] = 1  # keeps the logarithm finite; that filter value is set to 0 below
    radius, angle = np.fft.ifftshift(radius), np.fft.ifftshift(angle)
    logarithm, low_pass = np.log(radius), _low_pass(shape)
    profiles = []
    for scale in range(SCALES):
        centre = math.log(SHORTEST_WAVELENGTH_PX * WAVELENGTH_FACTOR**scale)
        profile = np.exp(-np.square(logarithm + centre) / (2 * math.log(RADIAL_SPREAD) ** 2)) * low_pass
        profile[0, 0] = 0
        profiles.append(profile)
    radial = [_without_zero_odd(_parts(profile)) for profile in profiles]
    angular = []
    for orientation in range(ORIENTATIONS):
        distance = np.abs(angle - orientation * math.pi / ORIENTATIONS)
        np.minimum(distance, 2 * math.pi - distance, out=distance)
        angular.append(_parts(np.exp(-np.square(distance) / (2 * ANGULAR_SPREAD**2))))
    every_scale = _without_zero_odd(_parts(np.sum(profiles, axis=0)))
    # A column of the half plane stands for itself and its mirror image, except those that are their own.
    weight = np.full(shape[1] // 2 + 1, 2.0)
    weight[0] = 1
    if shape[1] % 2 == 0:
        weight[-1] = 1
    finest = [radial[0].times(of_angle) for of_angle in angular]
    return FilterBank(
        radial,
        angular,
        finest_energy=[float(np.sum((np.square(even) + np.square(odd)) * weight)) for even, odd in finest],
        noise_energy=[float(np.sum(np.square(every_scale.times(a)[0]) * weight)) for a in angular],
    )


def _frequencies(length: int) -> npt.NDArray[np.float64]:
    """Return the centred frequency coordinates of an axis: steps of 1/n for even n, of 1/(n - 1) for odd n."""
    return (np.arange(length) - length // 2) / max(length - length % 2, 1)


def _low_pass(shape: tuple[int, int]) -> Map:
    """Return the Butterworth low pass. For odd sizes it lies one sample off, by ``fftshift``, as in the reference."""
    y, x = np.meshgrid(*((np.arange(length) - length // 2) / length for length in shape), indexing="ij")
    square = (np.square(x) + np.square(y)) / LOW_PASS_CUTOFF**2
    cube = square * square * square
    return np.fft.fftshift(1 / (1 + cube * cube * cube * cube * cube))  # (radius / cutoff)^30


def _parts(plane: Map) -> Parts:
    """Return the even and odd part of a function on the full frequency plane (H, W)."""
    height, width = plane.shape
    columns = np.arange(width // 2 + 1)
    half, negated = plane[:, : columns.size], plane[np.ix_(-np.arange(height) % height, -columns % width)]
    return Parts((half + negated) / 2, (half - negated) / 2)


def _without_zero_odd(parts: Parts) -> Parts:
    """Return the same function with an odd part of zeros left out."""
    return Parts(parts.even, None if parts.odd is None or not parts.odd.any() else parts.odd)
