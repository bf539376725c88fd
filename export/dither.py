"""Streams that differ a little from pixel to pixel, so that the rounding errors of flat areas are no one error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 8
"""Side of a tile in pixels: what every height and width is a multiple of."""
WITHIN = 0.7 * 2.0**-11
"""Largest share by which a value changes within a tile. Rounding to half changes it by 2^-11 at most."""
BY_ROW = 2.0**-11
"""Largest share by which a row of tiles changes besides."""
PERIOD = 32
"""Rows of tiles until the shares come again."""
MOST_ROWS = 1024
"""Rows of tiles that a map can have."""


class Dither(nn.Module):
    """Scale each channel by 1 + d, with d a fixed pattern, a different one in each channel.

    On the black ground of a medical image all pixels of a map hold one vector. Whatever a half layer makes of it, it
    makes the same rounding error at each of these pixels, and the error of a mean over them is as large as that of one.
    With the pattern they lie about a rounding step apart, so their errors differ in sign and average out, like those
    of an area with texture (as dither does in quantisation: L. Schuchman, IEEE Transactions on Communication
    Technology 12(4), 1964).

    Within a tile of 8x8 pixels each channel's d takes 64 evenly spaced values once each; their mean is 0. Each row of
    tiles has a share of its own on top: sums over bands of rows, as attention takes them (rewrite
    attend_channels_last), would be rounded alike, too. Rows 2k and 2k + 1 have opposite shares, so that every channel
    keeps its mean.
    """

    pattern: Tensor
    shares: Tensor

    def __init__(self, channels: int) -> None:
        """Draw the patterns; the same ones in every graph."""
        super().__init__()
        generator = torch.Generator().manual_seed(SIDE)
        within = _spaced(channels, SIDE * SIDE, generator)
        of_two = _spaced(channels, PERIOD // 2, generator)
        by_row = torch.stack([of_two, -of_two], dim=2).flatten(1).repeat(1, MOST_ROWS // PERIOD)
        self.register_buffer("pattern", 1 + WITHIN * within.reshape(channels, 1, SIDE, 1, SIDE))
        self.register_buffer("shares", BY_ROW * by_row.reshape(channels, MOST_ROWS, 1, 1, 1))

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """Map streams that have the channels together, (B, C, H, W) each, float32 or wider, to the same shapes.

        Heights and widths are multiples of 8, heights at most 8,192.
        """
        factors = self.pattern + self.shares[:, : streams[0].shape[2] // SIDE]  # (2C, rows of tiles, 8, 1, 8)
        share = len(factors) // len(streams)  # slices, and no split: that is what exporters fold
        return tuple(
            _scaled(stream, factors[place * share : (place + 1) * share]) for place, stream in enumerate(streams)
        )


def _spaced(channels: int, count: int, generator: torch.Generator) -> Tensor:
    """Return evenly spaced values within -1..1, odd multiples of 1 / count, in an order of its own for each channel."""
    places = torch.rand(channels, count, generator=generator).argsort(dim=1)
    return (2 * places + 1 - count) / count


def _scaled(stream: Tensor, factors: Tensor) -> Tensor:
    height, width = stream.shape[-2:]
    tiles = stream.unflatten(3, (width // SIDE, SIDE)).unflatten(2, (height // SIDE, SIDE))
    return (tiles * factors).reshape(stream.shape)
