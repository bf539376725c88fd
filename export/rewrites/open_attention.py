"""Channel attention with its steps as parts, so that each rewrite replaces one of them.

Maps are ``(..., heads, c, H, W)``, c channels a head, until they are multiplied as rows ``(..., heads, c, N)`` with
N = H*W. The leading axes are the batch, or batch and stream where two streams run as one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.weights import conv_of, matrix
from upfusion.model.layers import ChannelAttention, unit_rows, widen
from upfusion.model.perturbation import SelectiveAttention

Maps = tuple[Tensor, ...]
"""Queries and keys, (..., heads, c, H, W) each; or one map that holds both, queries first, along the axis of heads."""


def in_two(maps: Maps, axis: int) -> Maps:
    """Return queries and keys apart."""
    return maps if len(maps) == 2 else maps[0].chunk(2, dim=axis)


def mix_channels(maps: Tensor, matrix: Tensor, means: Tensor | None = None) -> Tensor:
    """Multiply the channels of (B, C, H, W) at each pixel with a matrix an image, (B, C, C), read channels-last.

    ``means`` (1, C) is what the maps lack at every pixel: it is multiplied with the matrix before that is rounded.
    """
    last = maps.permute(0, 2, 3, 1)
    mixed = last.flatten(1, 2) @ matrix.to(maps.dtype)
    if means is not None:
        mixed = (widen(mixed) + means @ matrix).to(maps.dtype)
    return mixed.reshape(last.shape).permute(0, 3, 1, 2)


class CosineOfMaps(nn.Module):
    """Normalise queries and keys along space, then multiply."""

    def forward(self, maps: Maps, axis: int) -> Tensor:
        """Return the cosines (..., heads, c, c), float32 or wider; ``axis`` is the one that may hold both maps."""
        q, k = (unit_rows(each.flatten(-2)) for each in in_two(maps, axis))
        return q @ k.transpose(-2, -1)


class ProjectedMaps(nn.Module):
    """Weigh the values by the attention, then mix the heads by the projection."""

    def __init__(self, project: nn.Conv2d) -> None:
        """Own the output convolution (C to C)."""
        super().__init__()
        self.project = project

    def forward(self, attention: Tensor, v: Tensor) -> Tensor:
        """Map attention (B, heads, c, c) and values (B, heads, c, H, W) to (B, C, N)."""
        attended = (attention.to(v.dtype) @ v.flatten(-2)).flatten(1, 2)
        mixed: Tensor = self.project(attended.unsqueeze(-1)).squeeze(-1)
        return mixed


class OpenAttention(nn.Module):
    """MDTA as parts: ``to_qkv``, ``depthwise``, ``similarity``, ``temperature``, ``output``."""

    def __init__(self, trained: ChannelAttention) -> None:
        """Take over the trained module's parts."""
        super().__init__()
        self.heads = trained.heads
        self.streams = 1
        self.head_axis = True
        self.temperature = trained.temperature
        self.to_qkv: nn.Module = trained.to_qkv
        self.depthwise: nn.Module = trained.depthwise
        self.similarity: nn.Module = CosineOfMaps()
        self.output: nn.Module = ProjectedMaps(trained.project)

    def drop_head_axis(self) -> None:
        """Leave out the axis of a single head; ``output`` must not ask for it. Two reshapes fewer."""
        assert self.heads == 1
        self.head_axis = False
        self.temperature = nn.Parameter(self.temperature.detach()[0], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, streams * C, H, W) to the same shape."""
        channels = x.shape[1] // (self.heads * self.streams)
        lead = (x.shape[0],) if self.streams == 1 else (x.shape[0], self.streams)
        rows = [self.heads, channels] if self.head_axis else [channels]
        if isinstance(self.to_qkv, nn.ModuleList) and isinstance(self.depthwise, nn.ModuleList):
            parts = zip(self.depthwise, self.to_qkv, strict=True)
            *ranked, v = (depthwise(conv(x)).reshape(*lead, *rows, *x.shape[-2:]) for depthwise, conv in parts)
        else:
            maps = self.depthwise(self.to_qkv(x))  # (B, streams * 3C, H, W)
            maps = maps.reshape(*lead, 3 * rows[0], *rows[1:], *x.shape[-2:])
            *ranked, v = maps.split((2 * rows[0], rows[0]), dim=len(lead))
        attention = (self.similarity(tuple(ranked), len(lead)) * self.temperature).softmax(-1)
        out: Tensor = self.output(attention, v)
        return out.reshape(x.shape)


class MaskByScatter(nn.Module):
    """Keep the largest logits of each row by their indices, as the paper reads."""

    def __init__(self, kept: int) -> None:
        """Keep this many logits of each row."""
        super().__init__()
        self.kept = kept

    def forward(self, logits: Tensor) -> Tensor:
        """Return which entries of (B, heads, c, c) stay, as booleans."""
        best = logits.topk(self.kept, dim=-1).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)


class OpenSelectiveAttention(nn.Module):
    """The perturbation module's attention as parts; the decision points are the trained module's own."""

    def __init__(self, trained: SelectiveAttention) -> None:
        """Take over the trained module's parts; the output scale goes into the projection."""
        super().__init__()
        self.heads = trained.heads
        self.temperature = trained.temperature
        self.to_query: nn.Module = trained.to_query
        self.query_depthwise = trained.query_depthwise
        self.to_key_value: nn.Module = trained.to_key_value
        self.key_value_depthwise = trained.key_value_depthwise
        self.similarity: nn.Module = CosineOfMaps()
        self.mask: nn.Module = MaskByScatter(trained.kept)
        scaled = matrix(trained.project) * trained.output_scale.detach().double()
        self.output: nn.Module = ProjectedMaps(conv_of(scaled, None, like=trained.project))
        self.logits = trained.logits
        self.keep = trained.keep

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        """Map query, source (B, C, H, W) to the same shape."""
        q = self.query_depthwise(self.to_query(query))
        key_value = self.key_value_depthwise(self.to_key_value(source))
        channels = q.shape[1] // self.heads
        shape = (channels, *query.shape[-2:])
        k, v = key_value.reshape(query.shape[0], 2 * self.heads, *shape).chunk(2, dim=1)
        similarity = self.similarity((q.reshape(query.shape[0], self.heads, *shape), k), 1)
        logits = self.logits(similarity * self.temperature)
        attention = torch.where(self.keep(self.mask(logits)), logits, -torch.inf).softmax(-1)
        out: Tensor = self.output(attention, v)
        return out.reshape(query.shape)


AnyAttention = OpenAttention | OpenSelectiveAttention


def open_attentions(deploy: DeployNetwork) -> list[AnyAttention]:
    """Replace every attention of the network that still is a trained module by its open form; return all of them."""
    opened: list[AnyAttention] = []
    for parent in list(deploy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ChannelAttention):
                child = OpenAttention(child)
                setattr(parent, name, child)
            elif isinstance(child, SelectiveAttention):
                child = OpenSelectiveAttention(child)
                setattr(parent, name, child)
            if isinstance(child, OpenAttention | OpenSelectiveAttention):
                opened.append(child)
    return opened
