"""Phase congruency against its definition written out with complex transforms, and the kept filters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from upfusion.metrics.phase_congruency import filter_bank, phase_maps


def coordinates(length: int) -> np.ndarray:
    if length % 2 == 0:
        return np.arange(-length // 2, length // 2) / length
    return np.arange(-(length - 1) // 2, (length - 1) // 2 + 1) / (length - 1)


def written_out(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The definition step by step: complex transforms, filters in space for the noise, atan2 for angles."""
    height, width = image.shape
    x, y = np.meshgrid(coordinates(width), coordinates(height))
    rho, theta = np.sqrt(x**2 + y**2), np.arctan2(-y, x)
    rho[height // 2, width // 2] = 1
    rho, theta = np.fft.ifftshift(rho), np.fft.ifftshift(theta)
    xl, yl = np.meshgrid((np.arange(width) - width // 2) / width, (np.arange(height) - height // 2) / height)
    low_pass = np.fft.fftshift(1 / (1 + (np.sqrt(xl**2 + yl**2) / 0.45) ** 30))
    gabor = []
    for s in range(4):
        g = np.exp(-(np.log(rho * 3 * 2.1**s) ** 2) / (2 * np.log(0.55) ** 2)) * low_pass
        g[0, 0] = 0
        gabor.append(g)
    spectrum = np.fft.fft2(image.astype(float))
    energies, amplitudes, congruency = 0, 0, []
    for o in range(6):
        a = o * math.pi / 6
        ds = np.sin(theta) * math.cos(a) - np.cos(theta) * math.sin(a)
        dc = np.cos(theta) * math.cos(a) + np.sin(theta) * math.sin(a)
        angular = np.exp(-(np.arctan2(ds, dc) ** 2) / (2 * (math.pi / 6 / 1.2) ** 2))
        filters = [g * angular for g in gabor]
        response = [np.fft.ifft2(spectrum * f) for f in filters]
        amplitude = [np.abs(r) for r in response]
        total = sum(amplitude)
        even, odd = sum(r.real for r in response), sum(r.imag for r in response)
        norm = np.sqrt(even**2 + odd**2) + 1e-4
        me, mo = even / norm, odd / norm
        energy = sum(r.real * me + r.imag * mo - np.abs(r.real * mo - r.imag * me) for r in response)
        power = np.median(amplitude[0] ** 2) / math.log(2) / np.sum(filters[0] ** 2)
        spatial = [np.fft.ifft2(f).real * math.sqrt(height * width) for f in filters]
        noise = 2 * power * sum(np.sum(w**2) for w in spatial)
        noise += 4 * power * sum(np.sum(spatial[s] * spatial[t]) for s in range(4) for t in range(s + 1, 4))
        tau = math.sqrt(noise / 2)
        threshold = (tau * math.sqrt(math.pi / 2) + 2 * math.sqrt((2 - math.pi / 2) * tau**2)) / 1.7
        weight = 1 / (1 + np.exp(10 * (0.5 - total / (np.max(amplitude, axis=0) + 1e-4) / 4)))
        weighted = weight * np.maximum(energy - threshold, 0)
        energies = energies + weighted
        amplitudes = amplitudes + total
        congruency.append((weighted / total, a))
    cx2 = sum((p * math.cos(a)) ** 2 for p, a in congruency) / 3
    cy2 = sum((p * math.sin(a)) ** 2 for p, a in congruency) / 3
    cxy = sum(p**2 * math.cos(a) * math.sin(a) for p, a in congruency) / 6
    d = np.sqrt(cxy**2 + (cx2 - cy2) ** 2) + 1e-4
    return energies / (amplitudes + 1e-4), (cy2 + cx2 + d) / 2, (cy2 + cx2 - d) / 2


@pytest.mark.parametrize("shape", [(32, 48), (33, 48), (32, 47), (31, 45), (128, 90)])
def test_maps_equal_the_definition_for_even_and_odd_sizes(shape: tuple[int, int]) -> None:
    scene = np.random.default_rng(sum(shape)).normal(size=shape).cumsum(axis=0).cumsum(axis=1)
    image = np.interp(scene, (scene.min(), scene.max()), (0, 255)).astype(np.uint8)
    for found, expected in zip(phase_maps(image), written_out(image), strict=True):
        # Same arithmetic in another order, float64; values up to 1.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_constant_image_has_no_phase_structure() -> None:
    assert all(not plane.any() for plane in phase_maps(np.full((20, 30), 77, np.uint8)))


def test_filters_of_even_sizes_have_an_even_radial_part() -> None:
    assert all(parts.odd is None for parts in filter_bank((20, 30)).radial)
    assert any(parts.odd is not None for parts in filter_bank((21, 30)).radial)  # the low pass is one sample off
