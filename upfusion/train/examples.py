"""Classical fusions as examples to learn from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from upfusion.evaluation.baselines import Gray, guided_filter, maximum
from upfusion.losses import edge_transfer_loss
from upfusion.runtime.images import finish

BLACK = 0.06
"""Keeps the loss of an example that is black all over finite, and small."""
DARK = 0.12
"""A pair of which one image is darker than this on average counts as dark."""


def are_dark(first: Tensor, second: Tensor) -> Tensor:
    """Return which pairs of (B, 1, H, W) images in 0..1 are dark, (B,) booleans: by night, or thermal images by day."""
    return torch.minimum(first.mean((1, 2, 3)), second.mean((1, 2, 3))) < DARK


def example_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the mean absolute difference to a classical fusion of each pair, relative to how bright that one is.

    Relative, because the contours of a night image are a level or two high. The classical fusion is :func:`example`.

    The metrics that a fused image is judged by forgive what is lost of one image where the other is well kept: a
    network that follows them alone ends in copying one image of each pair. An example shows both.

    Args:
        fused: (B, 1, H, W).
        first: (B, 1, H, W) in 0..1.
        second: as ``first``.
    """
    shown = example(first, second)
    axes = (1, 2, 3)
    return ((fused - shown).abs().mean(axes) / (shown.mean(axes) + BLACK)).mean()


@torch.no_grad()
def example(first: Tensor, second: Tensor) -> Tensor:
    """Return the fusion of each pair by the guided filter or by the maximum, whichever passes on more of the edges.

    The guided filter keeps details of both images by day. Where an image is dark it is always the maximum: the guided
    filter passes on edges there, but from half as bright an image (``upfusion.evaluation.baselines``).
    """
    return torch.cat([_example(a, b) for a, b in zip(first.split(1), second.split(1), strict=True)])


def _example(first: Tensor, second: Tensor) -> Tensor:
    """Return the example of one pair, (1, 1, H, W)."""
    images = [finish(plane[0, 0].cpu().numpy(), *plane.shape[2:]) for plane in (first, second)]
    brightest = _plane(maximum(*images), like=first)
    if are_dark(first, second):
        return brightest
    detailed = _plane(guided_filter(*images), like=first)
    lost = [float(edge_transfer_loss(fusion, first, second)) for fusion in (brightest, detailed)]
    return detailed if lost[1] < lost[0] else brightest


def _plane(levels: Gray, like: Tensor) -> Tensor:
    return torch.from_numpy(levels.astype(np.float32) / 255).to(like)[None, None]
