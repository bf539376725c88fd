"""Other exposures of a crop: darker, in whole levels, and what is brightest in them."""

from __future__ import annotations

import numpy as np
import pytest

from upfusion.train.exposure import dark_pair, darkened, dimmed


def generator(seed):
    return np.random.Generator(np.random.PCG64(seed))


def scene(channels=1, side=96):
    """A ramp from dark to mid grey with one small bright body."""
    plane = np.tile(np.linspace(0.2, 0.6, side, dtype=np.float32), (side, 1))
    plane[40:48, 40:48] = 1
    return np.stack([plane] * channels)


def test_darkening_only_darkens():
    image = scene(3)
    made = [darkened(image, generator(seed)) for seed in range(20)]
    assert 0.1 < np.mean([dark.mean() for dark in made]) < 0.9 * image.mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_dim_images_are_whole_levels_of_the_same_form(channels):
    image = scene(channels)
    for seed in range(40):
        dim = dimmed(image, generator(seed))
        assert dim.shape == image.shape
        assert dim.dtype == np.float32
        assert dim.min() >= 0
        assert dim.max() <= 1
        np.testing.assert_allclose(dim * 255, np.rint(dim * 255), atol=1e-4)


def test_the_ground_of_a_dim_image_is_dark_and_its_brightest_body_mostly_is_not():
    image = scene()
    made = [dimmed(image, generator(seed))[0] for seed in range(100)]
    medians = np.array([np.median(dim) for dim in made])
    bodies = np.array([dim[42:46, 42:46].mean() for dim in made])
    assert np.quantile(medians, 0.8) < 0.2
    assert (bodies > 0.4).mean() > 0.3
    assert (bodies < 0.35).mean() > 0.2, "some scenes have nothing bright at all"


def test_dim_images_keep_what_was_there():
    """A dim exposure is a picture of the same scene, of its brightest part at least."""
    image = scene()
    seen = [np.corrcoef(dimmed(image, generator(seed)).ravel(), image.ravel())[0, 1] for seed in range(60)]
    assert np.median(seen) > 0.7
    assert np.quantile(seen, 0.05) > 0.4


def test_planes_of_a_colour_image_share_their_noise():
    image = scene(3)
    spread = [np.ptp(dimmed(image, generator(seed)), axis=0).max() for seed in range(30)]
    assert np.median(spread) == 0


def test_a_dark_pair_depends_on_the_generator_alone():
    first, second = scene(3), scene()
    once, again = (dark_pair(first, second, generator(5)) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)
    other = dark_pair(first, second, generator(6))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))
