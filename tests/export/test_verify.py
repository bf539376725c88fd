"""How far two images and two artifacts are apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from upfusion.export.verify import compare_artifacts, difference
from upfusion.runtime.errors import InputError
from upfusion.samples import write_samples


def image(seed: int = 0, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, np.uint8)


def test_equal_images():
    same = difference(image(), image(), "x")
    assert (same.max_levels, same.mean_levels, same.share_off) == (0, 0, 0)
    assert math.isinf(same.psnr_db)
    assert same.ssim == pytest.approx(1)


def test_one_pixel_off():
    first = np.full((40, 50), 100, np.uint8)
    second = first.copy()
    second[3, 4] = 90
    off = difference(first, second, "x")
    assert off.max_levels == 10
    assert off.share_off == 1 / 2000
    assert off.psnr_db == pytest.approx(10 * math.log10(255**2 / (100 / 2000)))
    assert off.ssim < 1


def test_sizes_must_agree():
    with pytest.raises(InputError, match="pair 7"):
        difference(image(), image(shape=(41, 50)), "pair 7")


def test_worst_pair_is_named(tmp_path: Path):
    pairs = write_samples(tmp_path)

    def average(visible, infrared, color):
        assert color == "gray"
        luma = visible if visible.ndim == 2 else visible.mean(2)
        return ((luma.astype(float) + infrared) / 2).astype(np.uint8)

    def darker(visible, infrared, color):
        fused = average(visible, infrared, color)
        return fused if visible.ndim == 3 else fused // 2

    seen = []
    result = compare_artifacts(darker, average, pairs, done=lambda pair: seen.append(pair.name))
    assert result.worst.name == "head_phantom"
    assert seen == [pair.name for pair in pairs]
    record = json.loads(json.dumps(result.to_dict()))
    assert record["worst_pair"] == "head_phantom"
    assert record["pairs"][0]["psnr_db"] is None  # equal
    with pytest.raises(InputError):
        compare_artifacts(average, average, [])
