"""The simple methods: their formulas, their types, and what they do with equal and with tiny images."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from upfusion.evaluation.baselines import BASELINES, average, guided_filter, laplacian_pyramid, maximum, on_luma
from upfusion.runtime.images import gray8


def scene(seed: int, shape: tuple[int, int] = (61, 83)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.interp(smooth, (smooth.min(), smooth.max()), (0, 255)).astype(np.uint8)


def test_average_and_maximum_by_their_formulas() -> None:
    first, second = np.array([[0, 255, 3]], np.uint8), np.array([[0, 255, 4]], np.uint8)
    assert average(first, second).tolist() == [[0, 255, 4]]  # halves up
    assert maximum(first, second).tolist() == [[0, 255, 4]]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", [(61, 83), (8, 8), (1, 5), (7, 40), (480, 640)])
def test_levels_and_size_are_kept(name: str, shape: tuple[int, int]) -> None:
    first, second = scene(1, shape), scene(2, shape)
    before = first.copy(), second.copy()
    fused = BASELINES[name](first, second)
    assert fused.dtype == np.uint8
    assert fused.shape == shape
    assert np.array_equal(first, before[0])
    assert np.array_equal(second, before[1])


@pytest.mark.parametrize("name", BASELINES)
def test_equal_images_are_their_own_fusion(name: str) -> None:
    image = scene(3)
    difference = BASELINES[name](image, image).astype(int) - image
    # Both multi-scale methods reassemble float32 parts: half a level of rounding at most.
    assert np.abs(difference).max() <= (1 if name == "guided filter" else 0)


@pytest.mark.parametrize("method", [laplacian_pyramid, guided_filter])
def test_multi_scale_methods_keep_the_detail_of_both(method) -> None:
    """A fine pattern in one source and in another place of the other: averaging halves it, these do not."""
    first, second = np.full((64, 64), 100, np.uint8), np.full((64, 64), 100, np.uint8)
    first[8:24, 8:24:2] = 140
    second[40:56, 40:56:2] = 140
    fused = method(first, second).astype(float)
    for part in (fused[10:22, 10:22], fused[42:54, 42:54]):
        assert part.std() > 0.8 * 20  # the sources' own is 20, the average's 10


def test_on_luma_takes_colour_and_16_bits() -> None:
    color = np.random.default_rng(4).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    second = scene(5, (20, 30))
    method = on_luma(average)
    assert np.array_equal(method(color, second), average(gray8(color), second))
    assert np.array_equal(method(color.astype(np.uint16) * 257, second), method(color, second))


def test_luma_is_that_of_the_metrics_references(golden: Path, shared: Path) -> None:
    from upfusion.runtime.images import read_image

    cases = json.loads((golden / "metrics" / "cases.json").read_text())["cases"]
    for case in cases:
        if case["source_A"].endswith(".png") and case["id"].startswith(("msrs", "pet", "spect", "ct")):
            expected = cv2.imread(str(golden / "metrics" / case["A"]), cv2.IMREAD_GRAYSCALE)
            assert np.array_equal(gray8(read_image(shared / case["source_A"])), expected), case["id"]


def test_levels_round_to_even_and_stay_in_range() -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    assert gray8(white).max() == 255
    assert gray8(np.full((8, 8), 65535, np.uint16)).max() == 255
    assert gray8(np.full((8, 8), 385, np.uint16)).min() == 1  # 385 / 257 = 1.498
