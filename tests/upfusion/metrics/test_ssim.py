"""SSIM against scikit-image, MS-SSIM against its definition with plain convolutions."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.signal import convolve2d

from upfusion.metrics import evaluate


def scene(seed: int, shape: tuple[int, int]) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return cv2.GaussianBlur(image, (0, 0), 1.2)


@pytest.mark.parametrize(("name", "dynamic_range"), [("SSIM", 2), ("SSIM_mean_range255", 255)])
def test_ssim_equals_scikit_image(name: str, dynamic_range: float) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    first, second, fused = (scene(seed, (40, 51)) for seed in range(3))
    fused[:20] = 0
    first[:15] = 0
    expected = np.mean(
        [
            metrics.structural_similarity(fused.astype(float), source.astype(float), data_range=dynamic_range)
            for source in (first, second)
        ]
    )
    # scikit-image subtracts squares of float means; ours are exact integer sums.
    assert evaluate(first, second, fused, [name])[name] == pytest.approx(expected, rel=1e-9)


def written_out(u: np.ndarray, v: np.ndarray, scales: int) -> float:
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    value = 1.0
    for scale, weight in enumerate(weights / weights.sum()):
        mu, mv, uu, vv, uv = (convolve2d(z, window, "valid") for z in (u, v, u * u, v * v, u * v))
        contrast = (2 * (uv - mu * mv) + 58.5225) / (uu - mu**2 + vv - mv**2 + 58.5225)
        luminance = (2 * mu * mv + 6.5025) / (mu**2 + mv**2 + 6.5025)
        value *= np.mean(luminance * contrast if scale == scales - 1 else contrast) ** weight
        u, v = halved(u), halved(v)
    return float(value)


def halved(z: np.ndarray) -> np.ndarray:
    height, width = z.shape[0] // 2 * 2, z.shape[1] // 2 * 2
    z = z[:height, :width]
    return (z[::2, ::2] + z[1::2, ::2] + z[::2, 1::2] + z[1::2, 1::2]) / 4


@pytest.mark.parametrize(("shape", "scales"), [((176, 180), 5), ((175, 190), 4), ((45, 47), 3), ((11, 30), 1)])
def test_ms_ssim_equals_the_definition(shape: tuple[int, int], scales: int) -> None:
    first, second, noise = (scene(seed, shape) for seed in range(3))
    # A fused image that resembles both, so that no contrast term is negative.
    fused = ((3 * first.astype(int) + 3 * second + noise) // 7).astype(np.uint8)
    expected = np.mean([written_out(s.astype(float), fused.astype(float), scales) for s in (first, second)])
    # Separable instead of two-dimensional filtering: rounding of variances, relative to constants of 58.
    assert evaluate(first, second, fused, ["MS-SSIM"])["MS-SSIM"] == pytest.approx(expected, rel=1e-10)
