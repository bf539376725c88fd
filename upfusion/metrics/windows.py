"""Local windows: separable Gaussian and box filtering in float64, and images too small for a window."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from upfusion.metrics.sources import Map

Scalar = TypeVar("Scalar", bound=np.generic)


def gaussian_kernel(size: int, sigma: float) -> Map:
    """Return the normalised 1-D Gaussian of odd ``size`` as a column (size, 1).

    Its outer product with itself is the normalised 2-D window, so filtering rows and columns in turn is exact.
    """
    offset = np.arange(size) - size // 2
    weights = np.exp(-(offset**2) / (2 * sigma**2))
    column: Map = (weights / weights.sum())[:, None]
    return column


def filtered_same(image: Map, kernel: Map) -> Map:
    """Return ``image`` filtered by the separable ``kernel`` with zeros beyond the border, same size."""
    return np.asarray(cv2.sepFilter2D(image, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_CONSTANT), np.float64)


def filtered_valid(image: Map, kernel: Map) -> Map:
    """Return the filtered pixels whose window lies inside the image: (H - n + 1, W - n + 1)."""
    margin = kernel.size // 2
    return filtered_same(image, kernel)[margin : image.shape[0] - margin, margin : image.shape[1] - margin]


def box_sums_valid(image: Map, size: int) -> Map:
    """Return the sums over ``size`` x ``size`` windows inside the image.

    Exact for integers held as float64: OpenCV keeps running sums, which round nothing there.
    """
    margin = size // 2
    sums = cv2.boxFilter(image, cv2.CV_64F, (size, size), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(sums, np.float64)[margin : image.shape[0] - margin, margin : image.shape[1] - margin]


def mirrored_to(image: npt.NDArray[Scalar], side: int) -> npt.NDArray[Scalar]:
    """Return ``image``, mirrored out at its lower and right edge until no side is shorter than ``side``.

    This is how every windowed metric here treats an image that is smaller than its smallest window, so that
    each of them has a finite value for every image; the references fail or answer NaN there.
    """
    missing = [(0, max(0, side - length)) for length in image.shape]
    return np.pad(image, missing, mode="symmetric") if any(after for _, after in missing) else image
