"""The two sources of a fusion, with what metrics compute from them alone kept for the next fused image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from upfusion.runtime.errors import InputError

Image = npt.NDArray[np.uint8]  # (H, W), grey levels 0..255
Map = npt.NDArray[np.float64]  # (H, W)

T = TypeVar("T")


class Sources:
    """A pair of registered source images, both (H, W) uint8.

    A table of many methods on one pair measures the same two sources again and again. A metric asks for what it
    needs of them through :meth:`each` or :meth:`kept`; the first request computes it, later ones return the same
    object, so nobody may write into it. For a 480x640 pair all metrics together keep about 130 MB, most of it
    for Q_P; :meth:`forget` lets go of it.

    Raises:
        InputError: an image is not a non-empty (H, W) uint8 array, or the sizes differ.
    """

    def __init__(self, first: Image, second: Image) -> None:
        _check_image(first, "first source")
        _check_image(second, "second source")
        if first.shape != second.shape:
            raise InputError(
                f"the sources differ in size: {_size(first)} and {_size(second)} (height x width)",
                "metrics need registered images of one size",
            )
        self.first = first
        self.second = second
        self._each: dict[Callable[[Image], object], tuple[object, object]] = {}
        self._kept: dict[Callable[[Sources], object], object] = {}

    def each(self, compute: Callable[[Image], T]) -> tuple[T, T]:
        """Return ``(compute(first), compute(second))``, computed at the first request."""
        if compute not in self._each:
            self._each[compute] = (compute(self.first), compute(self.second))
        return self._each[compute]  # type: ignore[return-value]

    def kept(self, compute: Callable[[Sources], T]) -> T:
        """Return ``compute(self)``, computed at the first request."""
        if compute not in self._kept:
            self._kept[compute] = compute(self)
        return self._kept[compute]  # type: ignore[return-value]

    def forget(self) -> None:
        """Drop everything kept; the next request computes it again."""
        self._each.clear()
        self._kept.clear()

    def check_fused(self, fused: Image) -> None:
        """Accept an (H, W) uint8 image of the sources' size.

        Raises:
            InputError: anything else.
        """
        _check_image(fused, "fused image")
        if fused.shape != self.first.shape:
            raise InputError(
                f"the fused image is {_size(fused)}, the sources are {_size(self.first)} (height x width)",
                "measure the fused image at the size of its sources",
            )


def _check_image(image: Image, role: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(
            f"the {role} is {got}; metrics take non-empty (height, width) uint8 arrays of grey levels 0..255",
            "turn colour into luma, round(0.299 R + 0.587 G + 0.114 B), before measuring",
        )


def _size(image: Image) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
