"""Geometric affine modulation (GAM): scale and shift a stream by its modality's own embedding."""

from __future__ import annotations

from torch import Tensor, nn

from upfusion.model.layers import conv1x1, spatial_mean


class AffineModulation(nn.Module):
    """GAM of the paper: ``x * (1 + gamma) + beta`` with gamma, beta from the guide's spatial mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.affine = nn.Sequential(
            conv1x1(channels, channels, bias=True), nn.ReLU(), conv1x1(channels, 2 * channels, bias=True)
        )

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Map x (B, C, H, W), guide (B, C, H, W) to x's shape."""
        gamma, beta = self.affine(spatial_mean(guide)[:, :, None, None]).chunk(2, dim=1)
        return x * (1 + gamma) + beta
