"""Two artifacts on the same pairs: how far their 8-bit images are apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upfusion.runtime.errors import InputError
from upfusion.runtime.pairs import Pair, naming, read_pair

Gray = NDArray[np.uint8]


class FusesPairs(Protocol):
    """What is compared: ``upfusion.runtime.Fuser`` on any backend."""

    def __call__(self, visible: Any, infrared: Any, color: Any = ...) -> Any:
        """Return the fused uint8 image of a pair."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two uint8 images of one pair are apart."""

    name: str
    max_levels: int
    mean_levels: float
    psnr_db: float
    """Peak 255; infinite where the images are equal."""
    ssim: float
    """Wang et al. 2004, 11x11 Gaussian, range 255."""
    share_off: float
    """Share of the pixels that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The differences over a set of pairs."""

    pairs: tuple[Difference, ...]

    @property
    def worst(self) -> Difference:
        """The pair with the lowest PSNR."""
        return min(self.pairs, key=lambda pair: (pair.psnr_db, -pair.max_levels))

    @property
    def max_levels(self) -> int:
        """Largest difference over all pairs, in 8-bit levels."""
        return max(pair.max_levels for pair in self.pairs)

    @property
    def mean_levels(self) -> float:
        """Mean over the pairs of the mean absolute difference."""
        return float(np.mean([pair.mean_levels for pair in self.pairs]))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready figures; an infinite PSNR is None."""

        def finite(record: dict[str, Any]) -> dict[str, Any]:
            return record | {"psnr_db": None if math.isinf(record["psnr_db"]) else record["psnr_db"]}

        return {
            "max_levels": self.max_levels,
            "mean_levels": self.mean_levels,
            "worst_pair": self.worst.name,
            "pairs": [finite(dataclasses.asdict(pair)) for pair in self.pairs],
        }


def difference(first: Gray, second: Gray, name: str) -> Difference:
    """Return how far two (H, W) uint8 images are apart.

    Raises:
        InputError: the sizes differ.
    """
    from skimage.metrics import structural_similarity

    if first.shape != second.shape:
        raise InputError(f"{name}: the fused images are {first.shape} and {second.shape}", "use artifacts for one size")
    levels = np.abs(first.astype(np.int16) - second)
    square = float(np.mean(np.square(levels, dtype=np.float64)))
    window = min(11, *((side - 1) // 2 * 2 + 1 for side in first.shape))
    ssim = structural_similarity(
        first,
        second,
        data_range=255,
        gaussian_weights=window == 11,
        win_size=window,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return Difference(
        name=name,
        max_levels=int(levels.max()),
        mean_levels=float(levels.mean()),
        psnr_db=10 * math.log10(255**2 / square) if square else math.inf,
        ssim=float(ssim),
        share_off=float(np.count_nonzero(levels) / levels.size),
    )


def compare_artifacts(
    first: FusesPairs, second: FusesPairs, pairs: Iterable[Pair], done: Callable[[Pair], None] = lambda pair: None
) -> Comparison:
    """Fuse every pair with both and return the differences of the gray 8-bit results.

    Args:
        first: the artifact under test.
        second: the reference.
        pairs: at least one.
        done: called after each pair.

    Raises:
        InputError: no pairs, or an unreadable one; the pair is named.
    """
    differences = []
    for pair in pairs:
        images = read_pair(pair)
        with naming(pair):
            fused = [fuse(images[0], images[1], color="gray") for fuse in (first, second)]
        differences.append(difference(fused[0], fused[1], pair.name))
        done(pair)
    if not differences:
        raise InputError("no pairs to compare on", "give two folders with images of the same names")
    return Comparison(pairs=tuple(differences))
