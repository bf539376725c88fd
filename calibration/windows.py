"""Which part of a pair stands for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def typical_window(images: Sequence[NDArray[Any]], size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the window whose brightness is most like that of the whole images.

    The window with the smallest sum of squared differences, over the images, of its mean and of its standard deviation
    to the image's. The centre of a medical image shows an organ and nothing of the black ground, which is half of
    the image and the part where rounding errors are the same at every pixel.

    Args:
        images: (H, W) or (H, W, channels) each, of one height and width; channels are averaged.
        size: height and width of the window; images that are smaller are taken whole along that side.
    """
    height, width = (min(wanted, side) for wanted, side in zip(size, images[0].shape, strict=False))
    unlike: NDArray[np.float64] = np.zeros(())
    for image in images:
        plane = image.astype(np.float64)
        plane = plane.mean(axis=2) if plane.ndim == 3 else plane
        plane = (plane - plane.mean()) / max(plane.std(), 1.0)  # so that the whole has mean 0 and deviation 1 (or 0)
        mean, square = window_means(plane, height, width), window_means(plane * plane, height, width)
        unlike = unlike + mean**2 + (np.sqrt(np.maximum(square - mean**2, 0)) - plane.std()) ** 2
    top, left = divmod(int(unlike.argmin()), unlike.shape[1])
    return slice(top, top + height), slice(left, left + width)


def window_means(plane: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Return the mean of every window of an (H, W) plane, (H - height + 1, W - width + 1), by its top left corner."""
    sums = cv2.integral(plane)
    found = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return np.asarray(found / (height * width), np.float64)
