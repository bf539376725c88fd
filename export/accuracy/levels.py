"""Differences of two 8-bit images in the terms of the accuracy report."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from upfusion.export.verify import difference

Gray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """How far an 8-bit image is from its reference."""

    psnr_db: float | None
    """Peak 255; None where the images are equal."""
    ssim: float
    max_levels: int
    shift_levels: float
    """Mean signed difference: a shift of the whole image."""
    share_over_two: float
    """Share of the pixels that are more than 2 levels off."""


def levels(image: Gray, reference: Gray, name: str) -> Levels:
    """Compare two (H, W) uint8 images; ``name`` is for errors.

    Raises:
        InputError: the sizes differ.
    """
    found = difference(image, reference, name)
    signed = image.astype(np.int16) - reference
    return Levels(
        psnr_db=None if math.isinf(found.psnr_db) else found.psnr_db,
        ssim=found.ssim,
        max_levels=found.max_levels,
        shift_levels=float(signed.mean()),
        share_over_two=float(np.mean(np.abs(signed) > 2)),
    )
