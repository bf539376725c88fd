"""Classical fusions as examples to learn from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from upfusion.evaluation.baselines import Gray, guided_filter, maximum
from upfusion.losses import edge_transfer_loss
from upfusion.runtime.images import finish


def example_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the mean absolute difference to a classical fusion of each pair, see :func:`example`.

    The metrics that a fused image is judged by forgive what is lost of one image where the other is well kept: a
    network that follows them alone ends in copying one image of each pair. An example shows both.

    Args:
        fused: (B, 1, H, W).
        first: (B, 1, H, W) in 0..1.
        second: as ``first``.
    """
    return (fused - example(first, second)).abs().mean()


@torch.no_grad()
def example(first: Tensor, second: Tensor) -> Tensor:
    """Return the fusion of each pair by the guided filter or by the maximum, whichever passes on more of the edges.

    The guided filter keeps details of both images by day, the maximum what little a night image shows
    (``upfusion.evaluation.baselines``).
    """
    chosen = []
    for a, b in zip(first.split(1), second.split(1), strict=True):
        images = [finish(plane[0, 0].cpu().numpy(), *plane.shape[2:]) for plane in (a, b)]
        fusions = [_plane(fuse(*images), like=a) for fuse in (guided_filter, maximum)]
        lost = [float(edge_transfer_loss(fusion, a, b)) for fusion in fusions]
        chosen.append(fusions[lost.index(min(lost))])
    return torch.cat(chosen)


def _plane(levels: Gray, like: Tensor) -> Tensor:
    return torch.from_numpy(levels.astype(np.float32) / 255).to(like)[None, None]
