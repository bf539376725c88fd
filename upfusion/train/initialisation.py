"""Starting values for short runs: a network that begins close to copying its inputs.

Four things of the architecture slow the first thousands of steps, and each is a matter of starting values:

* The perturbation module has no skip around its attention, and a layer norm in front of it that removes each pixel's
  level. With a ``merge`` bias of unit size the norm's divisor hardly depends on the pixel, so the norm is nearly
  linear and the level survives.
* Its attention is nearly uniform at temperature 1, since cosines lie in -1..1: every channel of a head becomes the
  same average. A higher temperature and an output scale of 1 let channels through.
* The pruning's 1x1 is tied to places in a ranking. The rank weights of fresh layers lie close together, so the places
  change owner from image to image and nothing can be learned about them. Well separated biases of the semantic head
  keep the order nearly fixed; this also leaves room for rounding in FP16.
* Both modalities are summed before the pruning, and a run may settle for carrying one of them. Half of the first
  channels start as the visible plane and half as the infrared one, and the layers behind lead each half into its own
  stream.
"""

from __future__ import annotations

import torch

from upfusion.model import FusionNetwork

RANK_SPREAD = 3.0
"""The semantic head's biases are spread evenly over -3..3."""
TEMPERATURE = 6.0


def make_ready_to_copy(network: FusionNetwork, seed: int) -> None:
    """Change the starting values in place as the module describes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _fix_order(network, generator)
        _let_through(network, generator)
        _separate_modalities(network)


def _fix_order(network: FusionNetwork, generator: torch.Generator) -> None:
    """Spread the semantic head's biases evenly, in random order."""
    head = network.pruning.trunk_head
    head.weight.mul_(0.3)
    spread = torch.linspace(RANK_SPREAD, -RANK_SPREAD, head.bias.numel())
    head.bias.copy_(spread[torch.randperm(head.bias.numel(), generator=generator)])


def _let_through(network: FusionNetwork, generator: torch.Generator) -> None:
    """Make the norms before the perturbations' attention nearly linear, and the attention selective."""
    for module in network.perturbations:
        module.squeeze[2].weight.mul_(8)
        module.attention.temperature.fill_(TEMPERATURE)
        module.attention.output_scale.fill_(1.0)
        module.merge.bias.copy_(torch.randn(module.merge.bias.shape, generator=generator))
        depthwise = module.attention.key_value_depthwise.weight
        depthwise.mul_(0.3)
        depthwise[:, :, 1, 1] += 1  # the values start as the pixel itself
    bias = network.expand.bias
    bias.copy_(0.5 * torch.randn(bias.shape, generator=generator))


def _separate_modalities(network: FusionNetwork) -> None:
    """Lead the visible plane into the visible stream and the infrared plane into the infrared one."""
    channels = network.config.dim
    half = channels // 2
    for embed, own in (
        (network.embed_visible, slice(0, half)),
        (network.embed_infrared, slice(half, channels)),
    ):
        embed.weight.mul_(0.05)
        embed.weight[own] *= 6
        embed.weight[own, 0, 1, 1] += torch.linspace(1.2, 2.2, embed.weight[own].shape[0])
    pruning, expand = network.pruning, network.expand
    gray = torch.full((1, 1, 64, 64), 0.5)
    mean = (network.embed_visible(gray) + network.embed_infrared(gray)) / 2
    order = pruning.rank_weights(mean).topk(pruning.kept, dim=1).indices[0].tolist()
    pruning.select.weight.mul_(0.1)
    expand.weight.mul_(0.3)
    source = [order[channel % len(order)] for channel in range(channels)]
    for channel in range(channels):
        pruning.select.weight[channel, channel % len(order), 0, 0] += 1
        of_visible = source[channel] < half
        expand.weight[:channels, channel] *= 1.0 if of_visible else 0.2
        expand.weight[channels:, channel] *= 0.2 if of_visible else 1.0
    visible = [channel for channel in range(channels) if source[channel] < half]
    infrared = [channel for channel in range(channels) if source[channel] >= half]
    for channel in range(channels):
        if visible:
            expand.weight[channel, visible[channel % len(visible)], 0, 0] += 1
        if infrared:
            expand.weight[channels + channel, infrared[channel % len(infrared)], 0, 0] += 1
    for of_visible, of_infrared in zip(
        network.encoders_visible.parameters(), network.encoders_infrared.parameters(), strict=True
    ):
        of_visible.copy_(of_infrared)
