"""The drawn samples: the right shapes, the same every time, and worth fusing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from upfusion.runtime.pairs import find_pairs, read_pair
from upfusion.samples import SAMPLES, head_phantom, night_street, write_night_streets, write_samples


def test_shapes_and_determinism():
    for draw in SAMPLES.values():
        first, second = draw()
        again = draw()
        assert first.dtype == second.dtype == np.uint8
        assert first.shape[:2] == second.shape
        np.testing.assert_array_equal(first, again[0])
        np.testing.assert_array_equal(second, again[1])


def test_each_image_shows_what_the_other_hides():
    visible, infrared = night_street()
    people = infrared > 200
    assert 0.01 < people.mean() < 0.1
    assert visible[people].mean() < 40  # warm, and dark in the visible image
    ct, mri = head_phantom()
    skull = ct > 200
    assert mri[skull].mean() < 40
    assert (ct[:8] == 0).all()
    assert (mri[:8] == 0).all()


def test_written_samples_are_pairs(tmp_path: Path):
    pairs = write_samples(tmp_path)
    assert [pair.name for pair in pairs] == list(SAMPLES)
    for pair, draw in zip(pairs, SAMPLES.values(), strict=True):
        for read, drawn in zip(read_pair(pair), draw(), strict=True):
            np.testing.assert_array_equal(read, drawn)


def test_night_streets_differ_and_are_pairs_of_the_size(tmp_path: Path):
    pairs = find_pairs(*write_night_streets(tmp_path / "new", (40, 56), 3))
    images = [read_pair(pair) for pair in pairs]
    assert [(first.shape, second.shape) for first, second in images] == [((40, 56, 3), (40, 56))] * 3
    assert not np.array_equal(images[0][1], images[1][1])
