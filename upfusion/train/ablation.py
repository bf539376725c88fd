"""The rows of the paper's ablation table, as replacements in a built network.

The paper names what each row leaves out, and not what takes its place; each class here says what does. An ablated
network is for comparison: its weights do not fit the network that is exported.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from upfusion.model import FusionNetwork
from upfusion.model.layers import conv1x1
from upfusion.model.perturbation import ChannelPerturbation
from upfusion.model.pruning import SemanticChannelPruning
from upfusion.runtime.errors import InputError

Ablation = Literal["pruning", "modulation", "perturbation", "pruning-attention", "perturbation-attention", "convnext"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)
"""Left out: SCPM, GAM, TCPM, channel attention in SCPM, channel attention in TCPM, ConvNeXt."""


class Unmodulated(nn.Module):
    """Instead of GAM: the stream unchanged."""

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Return x (B, C, H, W)."""
        return x


class PlainFusion(nn.Module):
    """Instead of TCPM: both streams side by side and a 1x1 convolution back to C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = conv1x1(2 * channels, channels, bias=True)

    def forward(self, visible: Tensor, infrared: Tensor, text: Tensor) -> Tensor:
        """Map two (B, C, H, W) streams to (B, C, H, W)."""
        return self.merge(torch.cat([visible, infrared], dim=1))


class ZeroStatistics(nn.Module):
    """Instead of SCPM's channel attention: the same weight for every channel, so ConvNeXt alone ranks."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Return zeros of the shape (B, C)."""
        return torch.zeros_like(pooled)


class StatisticsOnlyPruning(SemanticChannelPruning):
    """Instead of SCPM's ConvNeXt: the channel attention alone ranks."""

    def rank_weights(self, x: Tensor) -> Tensor:
        """Return the weight that each channel is ranked by, (B, C), in 0..1."""
        return self.score(self.squeeze(x.mean((2, 3))))


class UnrankedPerturbation(ChannelPerturbation):
    """Instead of TCPM's channel attention: the first half of each stream's channels, the two streams in turn."""

    def rank(self, both: Tensor) -> Tensor:
        """Return visible 0, infrared 0, visible 1, ... as (B, C) indices of (B, 2C, H, W)."""
        first = torch.arange((self.kept + 1) // 2, device=both.device)
        order = torch.stack([first, first + self.kept], dim=1).flatten()[: self.kept]
        return self.order(order.expand(both.shape[0], -1))


def ablate(network: FusionNetwork, without: tuple[str, ...]) -> None:
    """Leave parts out of a freshly built network, in place.

    Raises:
        InputError: an unknown name, or a part and something inside it.
    """
    for name in without:
        if name not in ABLATIONS:
            raise InputError(f"nothing is named {name!r} to leave out", f"choose from {', '.join(ABLATIONS)}")
    for outer, inner in (
        ("pruning", "pruning-attention"),
        ("pruning", "convnext"),
        ("perturbation", "perturbation-attention"),
        ("pruning-attention", "convnext"),
    ):
        if outer in without and inner in without:
            raise InputError(f"--without {outer} and --without {inner} leave nothing to rank by", "give one of them")
    if "pruning" in without:
        network.pruning = nn.Identity()  # type: ignore[assignment]
    if "modulation" in without:
        network.modulate_visible = Unmodulated()  # type: ignore[assignment]
        network.modulate_infrared = Unmodulated()  # type: ignore[assignment]
    if "perturbation" in without:
        widths = [network.config.channels(level) for level in range(1, 5)]
        network.perturbations = nn.ModuleList(map(PlainFusion, widths))
    if "pruning-attention" in without:
        network.pruning.squeeze = ZeroStatistics()  # type: ignore[assignment]
    if "convnext" in without:
        for part in ("to_rgb", "trunk", "trunk_head", "alpha"):
            delattr(network.pruning, part)
        network.pruning.__class__ = StatisticsOnlyPruning
    if "perturbation-attention" in without:
        for module in network.perturbations:
            del module.squeeze
            module.__class__ = UnrankedPerturbation
