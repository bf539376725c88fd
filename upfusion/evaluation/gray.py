"""The grey 8-bit image that metrics and baselines see of an image file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from upfusion.runtime.images import Image, luma

_16_TO_8_BIT = np.float32(257)  # 65535 / 255


def gray8(image: Image) -> npt.NDArray[np.uint8]:
    """Return an image (H, W) or (H, W, 3) RGB, uint8 or uint16, as (H, W) uint8.

    Colour becomes luma, round(0.299 R + 0.587 G + 0.114 B), halves to even, as the metrics' references read it;
    16 bit is divided by 257 before rounding.
    """
    if image.ndim == 2 and image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    levels: npt.NDArray[np.float32] = luma(image) if image.ndim == 3 else image.astype(np.float32)
    if image.dtype == np.uint16:
        levels = levels / _16_TO_8_BIT
    # Equal channels of 255 may come out a rounding error above 255.
    rounded: npt.NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return rounded
