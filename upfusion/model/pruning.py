"""Semantic channel pruning (SCPM): keep the channels that squeeze statistics and a ConvNeXt rank highest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from upfusion.model.layers import conv1x1, spatial_mean, take_channels

KEPT_SHARE = 0.7
"""Share of the channels that stay."""
TRUNK_SIZE = 224
"""Side of the square image that the ConvNeXt trunk sees, whatever the input size."""


def convnext_trunk(depths: tuple[int, ...], dims: tuple[int, ...]) -> ConvNeXt:
    """Return timm's ConvNeXt without pooling, final layer norm and classifier (layer norm eps 1e-6, exact GELU)."""
    trunk = ConvNeXt(depths=depths, dims=dims, num_classes=0, drop_path_rate=0.5)
    trunk.head = nn.Identity()
    return trunk


class SemanticChannelPruning(nn.Module):
    """SCPM of the paper. The rank weights pick and order channels; they are never multiplied in.

    ``score`` and ``order`` are identities: a forward hook on them reads a decision's values or replaces the
    decision. No gradient reaches the layers that only rank.
    """

    def __init__(self, channels: int, convnext_depths: tuple[int, ...], convnext_dims: tuple[int, ...]) -> None:
        super().__init__()
        self.kept = int(KEPT_SHARE * channels)
        self.squeeze = nn.Sequential(
            nn.Linear(channels, channels // 8), nn.ReLU(), nn.Linear(channels // 8, channels), nn.Sigmoid()
        )
        self.to_rgb = conv1x1(channels, 3)
        self.trunk = convnext_trunk(convnext_depths, convnext_dims)
        self.trunk_head = nn.Linear(convnext_dims[-1], channels)
        self.alpha = nn.Parameter(torch.ones(()))
        self.select = conv1x1(self.kept, channels)
        self.score = nn.Identity()
        self.order = nn.Identity()

    def semantic_logits(self, x: Tensor) -> Tensor:
        """Return the ConvNeXt's logit for each channel, (B, C), from x (B, C, H, W).

        The three-channel view is resized without antialiasing and without ImageNet statistics; the features are
        averaged without the trunk's final layer norm.
        """
        size = (TRUNK_SIZE, TRUNK_SIZE)
        view = F.interpolate(self.to_rgb(x), size=size, mode="bilinear", align_corners=False)
        return self.trunk_head(spatial_mean(self.trunk.forward_features(view)))

    def rank_weights(self, x: Tensor) -> Tensor:
        """Return the weight that each channel is ranked by, (B, C), in 0..1 + alpha."""
        statistics = self.squeeze(spatial_mean(x))
        return self.score(statistics + self.alpha * self.semantic_logits(x).sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape: the best 70 % of the channels, in order, mixed by a 1x1."""
        with torch.no_grad():
            order = self.order(self.rank_weights(x).topk(self.kept, dim=1).indices)
        return self.select(take_channels(x, order))
