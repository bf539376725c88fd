"""The window that stands for a pair."""

from __future__ import annotations

import numpy as np
import pytest

from upfusion.calibration.windows import typical_window, window_means


def test_the_window_holds_as_much_ground_as_the_whole():
    generator = np.random.default_rng(0)
    first = np.zeros((80, 120), np.uint8)
    first[20:60, 30:90] = generator.integers(100, 200, (40, 60))  # a quarter of the image, and all of its centre
    second = first[..., None].repeat(3, axis=2)
    window = first[typical_window([first, second], (40, 60))]
    assert window.shape == (40, 60)
    assert (window > 0).mean() == pytest.approx(0.25, abs=0.02)


def test_both_images_count():
    first, second = np.zeros((2, 64, 96), np.uint8)
    first[:32], second[:, :48] = 255, 255  # all four combinations of black and white, a quarter each
    rows, columns = typical_window([first, second], (32, 48))
    assert (rows.start, columns.start) == (16, 24)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_flat_and_small_images(dtype: type[np.unsignedinteger]):
    flat = np.full((40, 200), 7, dtype)
    rows, columns = typical_window([flat, flat], (96, 128))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (40, 128)


def test_means_of_windows():
    plane = np.random.default_rng(1).normal(size=(7, 9))
    found = window_means(plane, 3, 4)
    assert found.shape == (5, 6)
    assert found[2, 3] == pytest.approx(plane[2:5, 3:7].mean())
