"""Text-guided channel perturbation (TCPM): the prompt reorders the channels that form the attention's query."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.config import TEXT_DIM
from upfusion.model.layers import (
    GatedFeedForward,
    LayerNorm2d,
    conv1x1,
    depthwise3x3,
    merge_heads,
    spatial_mean,
    split_heads,
    take_channels,
    unit_rows,
)

ATTENTION_SHARE = 0.9
"""Share of each attention row that is kept."""
INITIAL_OUTPUT_SCALE = 0.2


class SelectiveAttention(nn.Module):
    """Channel attention from a query map to a key/value map, with only the largest logits of each row kept.

    ``logits`` (after temperature, before masking) and ``keep`` are identities for forward hooks.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kept = int(ATTENTION_SHARE * (channels // heads))
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.output_scale = nn.Parameter(torch.full((1,), INITIAL_OUTPUT_SCALE))
        self.to_query = conv1x1(channels, channels)
        self.query_depthwise = depthwise3x3(channels)
        self.to_key_value = conv1x1(channels, 2 * channels)
        self.key_value_depthwise = depthwise3x3(2 * channels)
        self.project = conv1x1(channels, channels)
        self.logits = nn.Identity()
        self.keep = nn.Identity()

    def mask(self, logits: Tensor) -> Tensor:
        """Return which entries of (B, heads, c, c) logits stay, as booleans of the same shape."""
        best = logits.topk(self.kept, dim=-1).indices
        return self.keep(torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True))

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        """Map query, source (B, C, H, W) to the same shape."""
        q = split_heads(self.query_depthwise(self.to_query(query)), self.heads)
        key_value = self.key_value_depthwise(self.to_key_value(source)).chunk(2, dim=1)
        k, v = (split_heads(part, self.heads) for part in key_value)
        logits = self.logits(unit_rows(q) @ unit_rows(k).transpose(-2, -1) * self.temperature)
        attention = logits.masked_fill(~self.mask(logits), -torch.inf).softmax(-1).to(v.dtype)
        return self.project(merge_heads(attention @ v * self.output_scale, like=query))


class ChannelPerturbation(nn.Module):
    """TCPM of the paper, fusing the two streams of one level.

    Two decisions are taken: which half of the 2C channels enters the query, in which order (per image, by squeeze
    weights), and the permutation of the mixed channels (by the text feature alone). Keys and values see all
    channels in natural order. ``score``, ``order``, ``text_logits`` and ``permutation`` are identities for
    forward hooks. No gradient reaches the layers that only rank.
    """

    def __init__(self, channels: int, heads: int, expansion: float, text_hidden: int) -> None:
        super().__init__()
        both = 2 * channels
        self.kept = both // 2
        self.squeeze = nn.Sequential(
            nn.Linear(both, both // 8, bias=False), nn.ReLU(), nn.Linear(both // 8, both, bias=False)
        )
        self.text_layers = nn.Sequential(nn.Linear(TEXT_DIM, text_hidden), nn.ReLU(), nn.Linear(text_hidden, both))
        self.mix = conv1x1(self.kept, both, bias=True)
        self.merge = conv1x1(both, channels, bias=True)
        self.norm_query = LayerNorm2d(channels)
        self.norm_source = LayerNorm2d(channels)
        self.attention = SelectiveAttention(channels, heads)
        self.norm_feed_forward = LayerNorm2d(channels)
        self.feed_forward = GatedFeedForward(channels, expansion)
        self.score = nn.Identity()
        self.order = nn.Identity()
        self.text_logits = nn.Identity()
        self.permutation = nn.Identity()

    def rank(self, both: Tensor) -> Tensor:
        """Return the best C of the 2C channels of (B, 2C, H, W), best first, as (B, C) indices."""
        with torch.no_grad():
            weights = self.score(self.squeeze(spatial_mean(both)).sigmoid())
            return self.order(weights.topk(self.kept, dim=1).indices)

    def permute(self, text: Tensor) -> Tensor:
        """Return all 2C channels in the order of their text logits, largest first, for text (B or 1, 512)."""
        with torch.no_grad():
            logits = self.text_logits(self.text_layers(text))
            return self.permutation(logits.argsort(dim=1, descending=True))

    def forward(self, visible: Tensor, infrared: Tensor, text: Tensor) -> Tensor:
        """Map two (B, C, H, W) streams and a text feature (B or 1, 512) to (B, C, H, W)."""
        both = torch.cat([visible, infrared], dim=1)
        mixed = self.mix(take_channels(both, self.rank(both)))
        permutation = self.permute(text).expand(both.shape[0], -1)
        query = self.merge(take_channels(mixed, permutation))
        attended = self.attention(self.norm_query(query), self.norm_source(self.merge(both)))
        return attended + self.feed_forward(self.norm_feed_forward(attended))
