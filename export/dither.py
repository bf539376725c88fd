"""Streams that differ a little from pixel to pixel, so that the rounding errors of flat areas are no one error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 8
"""Side of the pattern in pixels: what every height and width is a multiple of."""
LARGEST = 2.0**-11
"""Largest share by which a value changes: the largest that rounding it to half would change it by."""


class Dither(nn.Module):
    """Scale each channel by 1 + d, with d a fixed pattern of 8x8 pixels, a different one in each channel.

    On the black ground of a medical image all pixels of a map hold one vector. Whatever a half layer makes of it, it
    makes the same rounding error at each of these pixels, and the error of a mean over them is as large as that of one.
    With the pattern there are 64 vectors that lie about a rounding step apart, so their errors differ in sign and
    average out, like those of an area with texture. Each channel's pattern has the mean 0 and takes 64 evenly spaced
    values once each (as dither does in quantisation: L. Schuchman, IEEE Transactions on Communication Technology 12(4),
    1964).
    """

    pattern: Tensor

    def __init__(self, channels: int) -> None:
        """Draw the patterns; the same ones in every graph."""
        super().__init__()
        generator = torch.Generator().manual_seed(SIDE)
        places = torch.rand(channels, SIDE * SIDE, generator=generator).argsort(dim=1)
        steps = (2 * places + 1 - SIDE * SIDE) / (SIDE * SIDE)  # odd multiples of 1/64 within -1..1
        self.register_buffer("pattern", 1 + LARGEST * steps.reshape(channels, 1, SIDE, 1, SIDE))

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """Map streams that have the channels together, (B, C, H, W) each, float32 or wider, to the same shapes.

        Heights and widths are multiples of 8.
        """
        share = len(self.pattern) // len(streams)  # slices, and no split: that is what exporters fold
        return tuple(
            _scaled(stream, self.pattern[place * share : (place + 1) * share]) for place, stream in enumerate(streams)
        )


def _scaled(stream: Tensor, pattern: Tensor) -> Tensor:
    height, width = stream.shape[-2:]
    tiles = stream.unflatten(3, (width // SIDE, SIDE)).unflatten(2, (height // SIDE, SIDE))
    return (tiles * pattern).reshape(stream.shape)
