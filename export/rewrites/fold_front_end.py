"""Everything before the first layer norm as one matrix per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.gather_weights import spread_columns
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of, frozen, matrix
from upfusion.model import FusionNetwork
from upfusion.model.layers import spatial_mean
from upfusion.model.pruning import TRUNK_SIZE

TAPS = 9
"""Pixels that a 3x3 convolution reads."""


class FoldedFrontEnd(nn.Module):
    """Both streams as a per-image matrix times the 3x3 neighbourhoods of the two planes.

    ``split`` says whether the streams come out apart, or as one (B, 2C, H, W) map.
    """

    def __init__(self, network: FusionNetwork) -> None:
        """Own the products of the trained weights and the parts that rank and modulate."""
        super().__init__()
        self.split = True
        pruning = network.pruning
        like = network.embed_visible
        visible, infrared = (
            part.weight.double().flatten(1) for part in (network.embed_visible, network.embed_infrared)
        )
        nothing = torch.zeros_like(visible)
        mean = torch.cat([visible, infrared], dim=1) / 2  # (C, 18): the averaged embedding
        places = torch.eye(TAPS, dtype=torch.float64).reshape(TAPS, 1, 3, 3).repeat(2, 1, 1, 1)
        self.neighbours = conv_of(places, None, like=like, groups=2)
        self.embedding = frozen(mean, like.weight)
        stacked = torch.cat([mean, torch.cat([visible, nothing], 1), torch.cat([nothing, infrared], 1)])
        self.pooled_embeddings = frozen(stacked, like.weight)  # (3C, 18): averaged, visible, infrared
        self.to_rgb = conv_of((matrix(pruning.to_rgb) @ mean).reshape(3, 2, 3, 3), None, like=like)
        self.expand = frozen(matrix(network.expand) @ matrix(pruning.select), like.weight)  # (2C, k)
        self.bias = frozen(bias_of(network.expand), like.weight)
        self.affines = nn.ModuleList([network.modulate_visible.affine, network.modulate_infrared.affine])
        self.pruning = pruning

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, ...]:
        """Return the streams at level 1 from one-channel planes (B, 1, H, W)."""
        planes = torch.cat([visible, infrared], dim=1)
        neighbours = self.neighbours(planes)  # (B, 18, H, W)
        means = F.linear(spatial_mean(neighbours), self.pooled_embeddings)  # (B, 3C)
        averaged, *guides = means.chunk(3, dim=1)
        order = self.rank(averaged, planes)
        selected = spread_columns(self.expand, order, averaged.shape[1])  # (B, 2C, C)
        affine = [part(guide[:, :, None, None]).flatten(1) for part, guide in zip(self.affines, guides, strict=True)]
        gammas, betas = zip(*(values.chunk(2, dim=1) for values in affine), strict=True)
        factor = (1 + torch.cat(gammas, dim=1)).unsqueeze(-1)  # (B, 2C, 1)
        kernel = (selected @ self.embedding) * factor  # (B, 2C, 18)
        shift = self.bias[:, None] * factor + torch.cat(betas, dim=1).unsqueeze(-1)
        both = (kernel @ neighbours.flatten(2) + shift).unflatten(2, planes.shape[-2:])
        return both.chunk(2, dim=1) if self.split else (both,)

    def rank(self, averaged: Tensor, planes: Tensor) -> Tensor:
        """Return the pruning's decision, (B, k), from the averaged embedding's means (B, C) and the planes."""
        pruning = self.pruning
        view = F.interpolate(self.to_rgb(planes), size=(TRUNK_SIZE, TRUNK_SIZE), mode="bilinear", align_corners=False)
        semantic = pruning.trunk_head(spatial_mean(pruning.trunk.forward_features(view)))
        weights = pruning.score(pruning.squeeze(averaged) + pruning.alpha * semantic.sigmoid())
        order: Tensor = pruning.order(weights.topk(pruning.kept, dim=1).indices)
        return order


def fold_front_end(deploy: DeployNetwork) -> RewriteReport:
    """Compose embeddings, channel selection, both expansions and the modulation into one matrix per image.

    With n(p) the 18 values that 3x3 kernels see of both planes at a pixel (zero beyond the border), E_v and E_i the
    embeddings, S the selection, W_s and W_e the two 1x1 convolutions, and gamma, beta of the modulation::

        (1 + gamma) * (W_e W_s S (E_v + E_i) / 2 n + b) + beta
            =  diag(1 + gamma) (W_e W_s S) [E_v E_i] / 2  n  +  (1 + gamma) * b + beta

    a 2C x 18 matrix per image. The means that squeeze branch and modulation ask for are the embeddings of the mean
    neighbourhood, and the three-channel view for the trunk is a fixed 3x3 convolution of the planes. Six maps of C or
    2C channels are neither written nor read; the 18 neighbourhood planes are.
    """
    if deploy.front_end is not None:
        return RewriteReport("fold_front_end", 0)
    network = deploy.network
    deploy.front_end = FoldedFrontEnd(network)
    for name in ("embed_visible", "embed_infrared", "expand", "modulate_visible", "modulate_infrared"):
        delattr(network, name)
    return RewriteReport("fold_front_end", 1)
