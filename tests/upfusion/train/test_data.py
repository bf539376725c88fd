"""Crops: which pairs, in which order, and what happens to broken and small images."""

from __future__ import annotations

import dataclasses
import logging

import cv2
import numpy as np
import pytest

from upfusion.evaluation.datasets import select_pairs
from upfusion.runtime.errors import InputError
from upfusion.train.data import Crops, PairReader, Shares, swapped
from upfusion.train.recipes import RECIPES

PLAIN = dataclasses.replace(RECIPES["paper"], crop=48)
RICH = dataclasses.replace(RECIPES["shipped"], crop=48)


def crops(folder, recipe=PLAIN, **changes):
    return Crops(PairReader(select_pairs(folder, "train").pairs), recipe, **{"seed": 3, **changes})


def test_a_crop_depends_on_seed_and_place_alone(pairs):
    one, two = crops(pairs, RICH), crops(pairs, RICH)
    one.crop(0), one.crop(5)  # what was drawn before does not matter
    for got, again in zip(one.crop(7), two.crop(7), strict=True):
        np.testing.assert_array_equal(got, again)
    assert not np.array_equal(crops(pairs, RICH, seed=4).crop(7)[0], two.crop(7)[0])


def test_crops_are_cut_from_the_pair_at_one_place(pairs):
    visible, infrared = crops(pairs).crop(2)
    assert (visible.shape, infrared.shape) == ((3, 48, 48), (1, 48, 48))
    assert visible.dtype == infrared.dtype == np.float32
    levels = np.rint(infrared[0] * 255).astype(np.uint8)
    for pair in select_pairs(pairs, "train").pairs:
        whole = cv2.imread(str(pair.second), cv2.IMREAD_GRAYSCALE)
        score = cv2.matchTemplate(whole, levels, cv2.TM_SQDIFF)
        if score.min() == 0:
            left, top = cv2.minMaxLoc(score)[2]
            colour = cv2.imread(str(pair.first))[top : top + 48, left : left + 48, ::-1]
            np.testing.assert_array_equal(np.rint(visible * 255), colour.transpose(2, 0, 1))
            return
    pytest.fail("the crop is in none of the images")


def test_each_epoch_takes_every_pair_once(pairs):
    listed = crops(pairs)
    orders = [[listed._index(k, None) for k in range(start, start + 5)] for start in (0, 5, 10)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(set(map(tuple, orders))) > 1
    repeated = crops(pairs, dataclasses.replace(PLAIN, reshuffle=False))
    assert [repeated._index(k, None) for k in range(5)] == [repeated._index(k, None) for k in range(5, 10)]


def test_shares_decide_how_often_a_set_is_drawn(pairs):
    listed = crops(pairs, shares=Shares(sizes=(4, 1), weights=(1, 3)))
    drawn = [listed._index(k, np.random.default_rng(k)) for k in range(400)]
    # 300 expected from the second set; the standard deviation is 8.7.
    assert 260 < drawn.count(4) < 340


def test_small_images_are_padded_with_zeros_behind(pairs):
    visible, infrared = crops(pairs, dataclasses.replace(PLAIN, crop=80)).crop(0)
    assert visible.shape == (3, 80, 80)
    assert not visible[:, 64:].any()
    assert not infrared[:, :, 72:].any()
    assert infrared[:, :64, :72].any()


def test_a_corrupt_pair_is_named_and_skipped(pairs, caplog):
    broken = pairs / "vis" / "p2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    reader = PairReader(select_pairs(pairs, "train").pairs, corrupt="skip")
    with caplog.at_level(logging.WARNING):
        first, _ = reader.read(2)
        reader.read(2)
    np.testing.assert_array_equal(first, reader.read(3)[0])
    assert [record.message for record in caplog.records if "p2" in record.message] == caplog.messages
    assert len(caplog.messages) == 1
    assert "p2" in reader.skipped[2]


def test_a_corrupt_pair_is_fatal_by_default(pairs):
    (pairs / "ir" / "p0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"p0\.png") as caught:
        PairReader(select_pairs(pairs, "train").pairs).read(0)
    assert "--corrupt skip" in caught.value.hint


def test_when_nothing_is_usable_it_says_so(pairs):
    for path in (pairs / "ir").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 5"):
        PairReader(select_pairs(pairs, "train").pairs, corrupt="skip").read(0)


def test_the_cache_stays_in_its_budget(pairs):
    small = PairReader(select_pairs(pairs, "train").pairs, cache_bytes=2 * 64 * 72 * 4)
    images = [small.read(index)[1].copy() for index in range(5)]
    assert len(small._kept) == 2
    for index in range(5):
        np.testing.assert_array_equal(small.read(index)[1], images[index])


def test_a_recipe_with_dim_pairs_dims_either_image_or_both(pairs):
    plain, dim = (crops(pairs, dataclasses.replace(PLAIN, dim=share)) for share in (0.0, 1.0))
    kinds = set()
    for k in range(60):
        bright, dark = plain.crop(k), dim.crop(k)
        same = tuple(np.array_equal(a, b) for a, b in zip(dark, bright, strict=True))
        assert all(kept or a.mean() < b.mean() for kept, a, b in zip(same, dark, bright, strict=True))
        kinds.add(same)
    assert kinds == {(False, False), (True, False), (False, True)}
    some = crops(pairs, dataclasses.replace(PLAIN, dim=0.5))
    assert 15 < sum(np.array_equal(some.crop(k)[1], plain.crop(k)[1]) for k in range(60)) < 50


def test_swapping_changes_places_and_keeps_the_values():
    random = np.random.default_rng(0)
    visible, infrared = (random.uniform(0, 1, (n, 8, 8)).astype(np.float32) for n in (3, 1))
    gray, luma = swapped(visible, infrared)
    assert gray.shape == visible.shape
    assert luma.shape == infrared.shape
    assert gray.dtype == luma.dtype == np.float32
    np.testing.assert_array_equal(gray, np.concatenate([infrared] * 3))
    np.testing.assert_allclose(luma[0], 0.299 * visible[0] + 0.587 * visible[1] + 0.114 * visible[2], rtol=1e-5)


def test_a_recipe_that_swaps_swaps_some_crops(pairs):
    listed = crops(pairs, dataclasses.replace(PLAIN, swap=0.5))
    swaps = sum(np.array_equal(visible[0], visible[1]) for visible, _ in map(listed.crop, range(40)))
    assert 10 <= swaps <= 30  # 20 expected, standard deviation 3.2
