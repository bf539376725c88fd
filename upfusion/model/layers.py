"""Layers that every part of the network is made of (Restormer, Zamir et al., CVPR 2022, section 3).

All feature maps are ``(B, C, H, W)``. Every 3x3 convolution has stride 1 and zero padding 1; the Restormer parts
have no biases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_FLOOR = 1e-12
"""Smallest L2 norm that queries and keys are divided by."""


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32 where it is narrower, else as it is.

    Statistics, norms, logits and everything that is ranked are taken of the widened map, so that a network with
    half-precision maps overflows nowhere and decides on float32 values.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def spatial_mean(x: Tensor) -> Tensor:
    """Return the mean over height and width, (B, C), of a map (B, C, H, W), in float32 or wider."""
    return widen(x).mean((2, 3))


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel, eps 1e-5, biased variance."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        wide = widen(x).permute(0, 2, 3, 1)
        normed = F.layer_norm(wide, self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)
        # Contiguous, so that the convolutions behind it sum in the same order as on a plain NCHW map: without it
        # the golden intermediates differ by 1e-4 instead of 3e-5.
        return normed.permute(0, 3, 1, 2).contiguous()


def conv1x1(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    """Return a pointwise convolution."""
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution without bias, zero padding 1."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def depthwise3x3(channels: int) -> nn.Conv2d:
    """Return a 3x3 depthwise convolution without bias, zero padding 1."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (B, C, H, W) to (B, heads, C/heads, H*W); channel index = head * (C/heads) + c."""
    return x.flatten(2).unflatten(1, (heads, -1))


def merge_heads(x: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`split_heads`, taking height and width from ``like``."""
    return x.flatten(1, 2).unflatten(2, like.shape[-2:])


def unit_rows(x: Tensor) -> Tensor:
    """Divide each channel of (B, heads, c, N) by its L2 norm along space, in float32 or wider."""
    return F.normalize(widen(x), dim=-1, eps=NORM_FLOOR)


def take_channels(x: Tensor, order: Tensor) -> Tensor:
    """Take channels of each image in the given order.

    Both forms are plain gathers along one axis. ``torch.gather`` would need an index as large as the map.

    Args:
        x: (B, C, H, W).
        order: (B, k) integer channel indices, one row an image.

    Returns:
        (B, k, H, W), channel j of image b being ``x[b, order[b, j]]``.
    """
    batch, channels = x.shape[:2]
    if batch == 1:
        return x.index_select(1, order[0])
    first_channel = torch.arange(batch, device=x.device)[:, None] * channels
    return x.flatten(0, 1).index_select(0, (order + first_channel).flatten()).unflatten(0, order.shape)


class ChannelAttention(nn.Module):
    """Multi-Dconv head transposed attention (MDTA): channels attend to channels, so the matrix is c x c."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.to_qkv = conv1x1(channels, 3 * channels)
        self.depthwise = depthwise3x3(3 * channels)
        self.project = conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        q, k, v = (split_heads(part, self.heads) for part in self.depthwise(self.to_qkv(x)).chunk(3, dim=1))
        logits = unit_rows(q) @ unit_rows(k).transpose(-2, -1) * self.temperature
        return self.project(merge_heads(logits.softmax(-1).to(v.dtype) @ v, like=x))


class GatedFeedForward(nn.Module):
    """Gated-Dconv feed-forward (GDFN): ``gelu(first half) * second half`` with the exact (erf) GELU."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = conv1x1(channels, 2 * hidden)
        self.depthwise = depthwise3x3(2 * hidden)
        self.project = conv1x1(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        gate, value = self.depthwise(self.expand(x)).chunk(2, dim=1)
        return self.project(F.gelu(gate) * value)


class RestormerBlock(nn.Module):
    """Attention, then feed-forward, each on a layer norm of its input and added to it.

    ``between`` is an identity for forward hooks: the stream behind the attention.
    """

    def __init__(self, channels: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.norm_attention = LayerNorm2d(channels)
        self.attention = ChannelAttention(channels, heads)
        self.between = nn.Identity()
        self.norm_feed_forward = LayerNorm2d(channels)
        self.feed_forward = GatedFeedForward(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = self.between(x + self.attention(self.norm_attention(x)))
        return x + self.feed_forward(self.norm_feed_forward(x))


class Downsample(nn.Module):
    """Halve height and width and double the channels: 3x3 to C/2, then pixel unshuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 2C, H/2, W/2)."""
        return F.pixel_unshuffle(self.conv(x), 2)


class Upsample(nn.Module):
    """Double height and width and halve the channels: 3x3 to 2C, then pixel shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C/2, 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x), 2)
