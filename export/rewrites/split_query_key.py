"""Queries and keys made part by part."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, blocks_at
from upfusion.export.rewrites.attend_channels_last import ChannelsLastAttention, banded_product
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of, frozen

PARTS = 2
"""Pieces that queries and keys are cut in."""


class SplitChannelsLastAttention(nn.Module):
    """Channels-last attention whose queries and keys are made part by part."""

    def __init__(self, joint: ChannelsLastAttention) -> None:
        """Cut the convolutions of queries and keys; everything else is taken over."""
        super().__init__()
        self.joint = joint
        pointwise, depthwise = joint.to_query_key, joint.query_key_depthwise
        parts = torch.arange(pointwise.out_channels).chunk(2 * PARTS)  # those of the queries first
        self.pointwise = nn.ModuleList(
            conv_of(pointwise.weight.detach().double()[part], bias_of(pointwise)[part], pointwise) for part in parts
        )
        self.depthwise = nn.ModuleList(
            conv_of(depthwise.weight.detach().double()[part], None, depthwise, len(part)) for part in parts
        )
        diagonal, floors = joint.diagonal.detach().double(), joint.floors.detach().double()
        self.diagonals = nn.ParameterList(frozen(diagonal[part][:, part], joint.diagonal) for part in parts)
        self.floors = nn.ParameterList(frozen(floors[part], joint.floors) for part in parts)
        del joint.to_query_key, joint.query_key_depthwise, joint.diagonal, joint.floors

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape; both are read and written channels-last."""
        parts = [self._part(x, index) for index in range(2 * PARTS)]
        queries, keys = parts[:PARTS], parts[PARTS:]
        rows = [torch.cat([self._logits(key, query) for query in queries], dim=-1) for key in keys]
        return self.joint.attend(x, torch.cat(rows, dim=-2))

    def _part(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Return a part's map (B, H, W, c) and its channels' L2 norms over the temperature (B, c, 1)."""
        maps = self.depthwise[index](self.pointwise[index](x)).permute(0, 2, 3, 1)
        squared = (banded_product(maps, maps, self.joint.band_rows) * self.diagonals[index]).sum(-1, keepdim=True)
        return maps, torch.maximum(squared, self.floors[index]).sqrt()

    def _logits(self, key: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor]) -> Tensor:
        """Return the logits of a part of the keys for a part of the queries, (B, keys, queries)."""
        return banded_product(key[0], query[0], self.joint.band_rows) / (key[1] * query[1].transpose(1, 2))


def split_query_key(deploy: DeployNetwork) -> RewriteReport:
    """Make queries and keys in halves, one after the other, and multiply half by half, where maps are largest.

    Of ``[q_1; q_2; k_1; k_2]`` multiplied with itself these blocks count::

        q_i q_i^T and k_j k_j^T (their diagonals),      k_j q_i^T

    Between its two convolutions only one part lives at a time. x and the parts are read more often.
    Needs: attend_channels_last.
    """
    done = 0
    for block in itertools.chain(*blocks_at(deploy, 0)):
        if isinstance(block.attention, ChannelsLastAttention):
            block.attention = SplitChannelsLastAttention(block.attention)
            done += 1
    return RewriteReport("split_query_key", done)
