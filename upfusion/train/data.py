"""Training crops: crop k of a run is a pure function of the seed and k."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upfusion.runtime.errors import InputError
from upfusion.runtime.images import LUMA, Image, prepare
from upfusion.runtime.pairs import Pair, read_pair
from upfusion.train.exposure import dark_pair, darkened
from upfusion.train.recipes import Recipe

log = logging.getLogger(__name__)

BLANK = 0.05
"""A crop whose brighter image stays below this mean holds little to learn; most are drawn again."""
DRAWS = 5


class PairReader:
    """Decoded pairs, kept in memory up to a budget. Safe to call from one thread at a time."""

    def __init__(
        self, pairs: Sequence[Pair], *, corrupt: Literal["skip", "fail"] = "fail", cache_bytes: int = 4 << 30
    ) -> None:
        """Take the pairs; nothing is read yet.

        Args:
            pairs: in the order that indices mean.
            corrupt: whether a pair that cannot be used ends the run, or is named once and the next one taken.
            cache_bytes: decoded images kept; the least recently used go first.
        """
        if not pairs:
            raise InputError("no training pairs", "give a data set with --data")
        self.pairs = list(pairs)
        self.skipped: dict[int, str] = {}
        """Reasons by index."""
        self._corrupt = corrupt
        self._budget = cache_bytes
        self._kept: OrderedDict[int, tuple[Image, Image]] = OrderedDict()

    def read(self, index: int) -> tuple[Image, Image]:
        """Return pair ``index``, or the next usable one where that is allowed.

        Raises:
            InputError: an unusable pair, or none is usable.
        """
        for offset in range(len(self.pairs)):
            place = (index + offset) % len(self.pairs)
            if place in self.skipped:
                continue
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
            try:
                images = read_pair(self.pairs[place])
            except InputError as error:
                if self._corrupt == "fail":
                    raise InputError(
                        error.problem, f"{error.hint}; or leave such pairs out with --corrupt skip"
                    ) from error
                self.skipped[place] = error.problem
                log.warning("skipped pair %s: %s", self.pairs[place].name, error.problem)
                continue
            self._keep(place, images)
            return images
        raise InputError(f"none of the {len(self.pairs)} training pairs can be used", "check the data set")

    def _keep(self, place: int, images: tuple[Image, Image]) -> None:
        self._kept[place] = images
        self._budget -= sum(image.nbytes for image in images)
        while self._budget < 0 and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._budget += sum(image.nbytes for image in dropped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How often each data set is drawn; without it every pair is drawn once an epoch."""

    sizes: tuple[int, ...]
    """Pairs of each data set, in the order in which they were joined."""
    weights: tuple[float, ...]


class Crops:
    """The endless list of crops of a run: crop k depends on the seed and k alone."""

    def __init__(self, reader: PairReader, recipe: Recipe, *, seed: int, shares: Shares | None = None) -> None:
        self.reader = reader
        self._recipe = recipe
        self._seed = seed
        self._shares = shares

    def __len__(self) -> int:
        """Crops of an epoch: one of each pair."""
        return len(self.reader.pairs)

    def crop(self, k: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (3, S, S) and (1, S, S) in 0..1, contiguous.

        Images smaller than the crop are padded with zeros at the bottom and the right, as the authors do.

        Raises:
            InputError: as :meth:`PairReader.read`.
        """
        random = np.random.Generator(np.random.PCG64((self._seed, 1, k)))
        index = self._index(k, random)
        first, second = (enlarged(image, self._recipe.crop) for image in self.reader.read(index))
        size = self._recipe.crop
        for _ in range(DRAWS):
            top, left = (int(random.integers(side - size + 1)) for side in second.shape[:2])
            window = (slice(top, top + size), slice(left, left + size))
            planes = prepare(first[window], second[window], multiple=1)
            visible, infrared = planes[0][0], planes[1][0]
            if max(visible.mean(), infrared.mean()) >= BLANK:
                break
        if self._recipe.flips:
            for axis in (1, 2):
                if random.random() < 0.5:
                    visible, infrared = np.flip(visible, axis), np.flip(infrared, axis)
        if random.random() < self._recipe.darken:
            visible = darkened(visible, random)
        if random.random() < self._recipe.dim:
            visible, infrared = dark_pair(visible, infrared, random)
        if random.random() < self._recipe.swap:
            visible, infrared = swapped(visible, infrared)
        return np.ascontiguousarray(visible), np.ascontiguousarray(infrared)

    def batch(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return crops start .. start + count - 1 as (B, 3, S, S) and (B, 1, S, S)."""
        firsts, seconds = zip(*(self.crop(k) for k in range(start, start + count)), strict=True)
        return torch.from_numpy(np.stack(firsts)), torch.from_numpy(np.stack(seconds))

    def _index(self, k: int, random: np.random.Generator) -> int:
        """Return which pair crop k is of."""
        if self._shares is not None:
            weights = np.asarray(self._shares.weights)
            which = random.choice(len(weights), p=weights / weights.sum())
            return int(sum(self._shares.sizes[:which]) + random.integers(self._shares.sizes[which]))
        epoch, place = divmod(k, len(self))
        order = np.random.Generator(np.random.PCG64((self._seed, 0, epoch if self._recipe.reshuffle else 0)))
        return int(order.permutation(len(self))[place])


def swapped(
    visible: NDArray[np.float32], infrared: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the pair with its places changed: gray as (3, S, S), and the colour image's luma as (1, S, S)."""
    return np.repeat(infrared, 3, axis=0), np.tensordot(np.stack(LUMA), visible, 1)[None]


def enlarged(image: Image, size: int) -> Image:
    """Return the image, padded with zeros at the bottom and the right to at least ``size`` a side."""
    short = [(0, max(0, size - side)) for side in image.shape[:2]]
    if not any(after for _, after in short):
        return image
    padded: Image = np.pad(image, short + [(0, 0)] * (image.ndim - 2))  # type: ignore[assignment]
    return padded
