"""A channel order of the perturbations that hardly depends on the image.

The k-th channel that a perturbation ranks meets the k-th column of the weight behind it. Its rank weights come from
layers that do not learn (no gradient reaches them), so the order of trained weights differs from image to image as it
happens to: the layers behind it have to serve every order, and a new image brings one that they have not seen. Keeping
the order still lets them learn about each channel. That is what ``make_ready_to_copy`` does for the pruning, through
the biases of its semantic head. The squeeze layers of a perturbation have no biases; here is how they do it::

    weights = sigmoid(W2 relu(W1 m)),   m (2C): the channels' means over the image
    W1 = rows u_j and -u_j,   W2 = every column w   ->   W2 relu(W1 m) = w sum_j |u_j m|

The image then scales the logits of the ranks and leaves their order, that of ``w``: each channel's mean rank before, so
that the weights behind find about the order that they know.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from upfusion.model import FusionNetwork
from upfusion.model.perturbation import ChannelPerturbation

SPREAD = 3.0
"""The rank logits of an average image lie evenly over -3..3."""


@torch.no_grad()
def make_order_steady(network: FusionNetwork, batches: Iterable[tuple[Tensor, Tensor]], text: Tensor) -> None:
    """Give each perturbation the mean order that its channels have over the batches, in place.

    Args:
        network: its perturbations' squeeze layers are replaced; everything else stays.
        batches: visible (B, 3, H, W) and infrared (B, 1, H, W) in 0..1, as varied as the images to come.
        text: (1, 512).
    """
    # An ablated perturbation has nothing to rank with.
    ranking = [module for module in network.perturbations if hasattr(module, "squeeze")]
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in ranking]  # means and logits of each batch
    handles = [
        module.squeeze.register_forward_hook(lambda _, args, out, at=at: at.append((args[0], out)))
        for module, at in zip(ranking, seen, strict=True)
    ]
    training, device = network.training, next(network.parameters()).device
    try:
        network.eval()
        for visible, infrared in batches:
            network(visible.to(device), infrared.to(device), text.to(device))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    for module, at in zip(ranking, seen, strict=True):
        means, logits = map(torch.cat, zip(*at, strict=True))
        _settle(module, means, logits)


def _settle(module: ChannelPerturbation, means: Tensor, logits: Tensor) -> None:
    """Set the squeeze layers from channel means and rank logits (images, 2C) that were seen."""
    first, last = module.squeeze[0].weight, module.squeeze[2].weight
    # One direction is that of the means, along which all images have much; the others are there for images that have
    # nothing along it.
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(first.shape[0] // 2, first.shape[1], generator=generator).to(means)
    directions[0] = F.normalize(means, dim=1).mean(0)
    directions = F.normalize(directions, dim=1)
    directions /= (means @ directions.T).abs().sum(1).median()
    ranks = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    order = ranks.double().mean(0).argsort(stable=True)
    spread = torch.empty_like(last[:, 0])
    spread[order] = torch.linspace(SPREAD, -SPREAD, len(order), device=spread.device)
    first.zero_()  # an odd last row stays zero
    first[: 2 * len(directions)] = torch.cat([directions, -directions])
    last.copy_(spread[:, None].expand_as(last))
