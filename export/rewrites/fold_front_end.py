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
from upfusion.model.network import LUMA_WEIGHTS
from upfusion.model.pruning import TRUNK_SIZE

TAPS = 9
"""Pixels that a 3x3 convolution reads."""


class LumaConvolution(nn.Module):
    """Luma as one 1x1 convolution; one channel passes unchanged."""

    def __init__(self, like: Tensor) -> None:
        """Own the three weights in the type of ``like``."""
        super().__init__()
        self.weight = frozen(torch.tensor(LUMA_WEIGHTS, dtype=torch.float64).reshape(1, 3, 1, 1), like)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, 1, H, W) of (B, 3, H, W) RGB."""
        return image if image.shape[1] == 1 else F.conv2d(image, self.weight)


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
        mean = torch.cat([visible, infrared], dim=1) / 2  # (C, 18): the averaged embedding
        places = torch.eye(TAPS, dtype=torch.float64).reshape(TAPS, 1, 3, 3).repeat(2, 1, 1, 1)
        self.neighbours = conv_of(places, None, like=like, groups=2)
        self.embedding = frozen(mean, like.weight)
        self.to_rgb = conv_of((matrix(pruning.to_rgb) @ mean).reshape(3, 2, 3, 3), None, like=like)
        self.expand = frozen(matrix(network.expand) @ matrix(pruning.select), like.weight)  # (2C, k)
        affines = [network.modulate_visible.affine, network.modulate_infrared.affine]
        hidden = torch.block_diag(*(matrix(affine[0]) for affine in affines)) @ torch.block_diag(visible, infrared)
        self.hidden = _linear(hidden, torch.cat([bias_of(affine[0]) for affine in affines]), like)
        gammas, betas = zip(*(matrix(affine[2]).chunk(2) for affine in affines), strict=True)
        gamma_biases, beta_biases = zip(*(bias_of(affine[2]).chunk(2) for affine in affines), strict=True)
        gamma, factor = torch.block_diag(*gammas), 1 + torch.cat(gamma_biases)
        shift = bias_of(network.expand)
        self.modulation = _linear(
            torch.cat([gamma, shift[:, None] * gamma + torch.block_diag(*betas)]),
            torch.cat([factor, shift * factor + torch.cat(beta_biases)]),
            like,
        )  # 4C: factor, then shift
        self.pruning = pruning

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, ...]:
        """Return the streams at level 1 from one-channel planes (B, 1, H, W)."""
        planes = torch.cat([visible, infrared], dim=1)
        neighbours = self.neighbours(planes)  # (B, 18, H, W)
        pooled = spatial_mean(neighbours)
        averaged = F.linear(pooled, self.embedding)  # (B, C)
        order = self.rank(averaged, planes)
        selected = spread_columns(self.expand, order, averaged.shape[1])  # (B, 2C, C)
        factor, shift = self.modulation(self.hidden(pooled).relu()).unsqueeze(-1).chunk(2, dim=1)  # (B, 2C, 1)
        kernel = (selected @ self.embedding) * factor  # (B, 2C, 18)
        # Two products rather than one cut in two: a compiler would keep all of it, in float32, until both are read.
        streams = zip(kernel.chunk(2, dim=1), shift.chunk(2, dim=1), strict=True) if self.split else [(kernel, shift)]
        flat = neighbours.flatten(2)
        return tuple((part @ flat + offset).unflatten(2, planes.shape[-2:]) for part, offset in streams)

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
    neighbourhood. The modulation's two layers become block-diagonal ones for both streams, which give 1 + gamma and,
    with b folded in, (1 + gamma) * b + beta. Luma is one 1x1 convolution, and the three-channel view for the trunk a
    fixed 3x3 convolution of the planes. Six maps of C or 2C channels are neither written nor read; the 18
    neighbourhood planes are.
    """
    if deploy.front_end is not None:
        return RewriteReport("fold_front_end", 0)
    network = deploy.network
    deploy.luma = LumaConvolution(network.embed_visible.weight)
    deploy.front_end = FoldedFrontEnd(network)
    for name in ("embed_visible", "embed_infrared", "expand", "modulate_visible", "modulate_infrared"):
        delattr(network, name)
    return RewriteReport("fold_front_end", 1)


def _linear(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> nn.Linear:
    """Return a layer with these float64 values in the type of ``like``."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = frozen(weight, like.weight), frozen(bias, like.weight)
    return linear
