"""What we define where a formula is 0/0 or an image is smaller than a window."""

from __future__ import annotations

import math

import numpy as np
import pytest

from upfusion.metrics import METRICS, evaluate

PERFECT_QABF = 0.9994 * 0.9879 / (1 + math.exp(-22 * 0.2))
LOWEST_Q_NCIE = 1 - math.log(3, 256)


def noise(seed: int, shape: tuple[int, int] = (48, 50)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat(level: int, shape: tuple[int, int] = (48, 50)) -> np.ndarray:
    return np.full(shape, level, np.uint8)


@pytest.mark.parametrize(
    "side", [(1, 1), (1, 7), (2, 2), (3, 40), (6, 6), (7, 7), (10, 11), (16, 16), (17, 17), (23, 90)]
)
def test_every_metric_has_a_value_for_every_size(side: tuple[int, int]) -> None:
    for name, value in evaluate(noise(1, side), noise(2, side), noise(3, side)).items():
        assert math.isfinite(value), name
        assert METRICS[name].lowest - 1e-12 <= value <= METRICS[name].highest + 1e-12, name


@pytest.mark.parametrize("levels", [(0, 0, 0), (7, 7, 7), (0, 9, 255), (255, 0, 0)])
def test_constant_images_have_no_information_and_no_correlation(levels: tuple[int, int, int]) -> None:
    value = evaluate(*(flat(level) for level in levels))
    assert value["Q_NCIE"] == pytest.approx(LOWEST_Q_NCIE, abs=1e-12)  # eigenvalues of the unit matrix, rounded
    zero = ("EN", "SD", "SF", "AG", "MI", "NMI", "CC", "SCD")
    assert {name: value[name] for name in zero} == dict.fromkeys(zero, 0.0)
    assert value["VIF"] == 1.0  # nothing was lost
    assert value["Q_P"] == 1.0  # nothing to transfer, nothing added


def test_identical_images_are_the_best_case() -> None:
    image = noise(4)
    value = evaluate(image, image, image)
    best = {"VIF": 1, "SSIM": 1, "MS-SSIM": 1, "FMI": 1, "CC": 1, "NMI": 2, "MSE": 0, "Qabf": PERFECT_QABF}
    # 1e-9: VIF divides two sums of logarithms whose terms differ by 1e-10 stabilisers.
    assert {name: value[name] for name in best} == pytest.approx(best, rel=1e-9)
    assert value["PSNR"] == 100.0  # infinite by the formula
    assert value["SCD"] == 0.0  # differences without contrast correlate with nothing


def test_a_constant_fused_image_keeps_nothing() -> None:
    value = evaluate(noise(5), noise(6), flat(90))
    for name in ("Q_P", "VIF", "CC", "MI", "NMI"):
        assert value[name] == 0.0, name


def test_features_that_the_sources_do_not_have_count_against() -> None:
    value = evaluate(flat(0), flat(0), noise(7))
    assert value["Q_P"] == 0.0
    assert value["Qabf"] == 0.0
    assert value["VIF"] == 1.0  # a source without information cannot lose any


def test_black_everywhere_is_perfect_transfer_of_edges() -> None:
    assert evaluate(flat(0), flat(0), flat(0))["Qabf"] == pytest.approx(PERFECT_QABF, rel=1e-12)


def test_one_constant_source_leaves_the_other_to_count() -> None:
    scene = noise(8)
    value = evaluate(flat(60), scene, scene)
    assert value["Q_P"] == evaluate(scene, scene, scene, ["Q_P"])["Q_P"]
    assert value["VIF"] == pytest.approx(1, rel=1e-9)
    assert value["CC"] == pytest.approx(0.5, rel=1e-12)  # r = 1 with the scene, 0 by definition with the constant


def test_a_black_fused_image_has_a_finite_psnr() -> None:
    value = evaluate(flat(255), flat(255), flat(0))
    assert value["PSNR"] == pytest.approx(-20 * math.log10(255), rel=1e-12)


def test_small_images_are_mirrored_to_the_smallest_window() -> None:
    first, second, fused = (noise(seed, (16, 16)) for seed in (1, 2, 3))
    mirrored = [np.pad(image, ((0, 1), (0, 1)), mode="symmetric") for image in (first, second, fused)]
    assert evaluate(first, second, fused, ["VIF"]) == evaluate(*mirrored, ["VIF"])
