"""Both attention inputs of a perturbation module from one pass over its streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, Rank
from upfusion.export.rewrites.gather_weights import SpreadEntry, spread_columns
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, frozen, matrix
from upfusion.model.layers import spatial_mean


class OnePassEntry(nn.Module):
    """Query, keys and values by one per-image matrix (2C x 2C)."""

    def __init__(self, spread: SpreadEntry) -> None:
        """Take over the values; they stay in their type when the maps narrow."""
        super().__init__()
        self.query_weight = spread.query_weight
        self.source_weight = frozen(matrix(spread.merge)[None], spread.query_weight)  # (1, C, 2C)
        query_bias, source_bias = spread.query_bias.detach().double().flatten(), bias_of(spread.merge)
        self.bias = frozen(torch.cat([query_bias, source_bias])[:, None], spread.query_weight)

    def forward(self, streams: tuple[Tensor, ...], rank: Rank) -> tuple[Tensor, Tensor]:
        """Return the maps of the query and of keys and values, (B, C, H, W) each."""
        query, source = self.rows(streams, rank).unflatten(2, streams[0].shape[-2:]).chunk(2, dim=1)
        return query, source

    def rows(self, streams: tuple[Tensor, ...], rank: Rank) -> Tensor:
        """Return both as the rows of one matrix (B, 2C, N), the query's first."""
        weight = self.weight(streams, rank)
        parts = weight.chunk(len(streams), dim=2) if len(streams) > 1 else (weight,)
        first, *others = (part @ stream.flatten(2) for part, stream in zip(parts, streams, strict=True))
        total = first + self.bias.to(first.dtype)
        for product in others:
            total = total + product
        return total

    def weight(self, streams: tuple[Tensor, ...], rank: Rank) -> Tensor:
        """Return each image's matrix (B, 2C, 2C) in the type of the streams."""
        pooled = torch.cat([spatial_mean(stream) for stream in streams], dim=1)
        query = spread_columns(self.query_weight, rank(pooled), pooled.shape[1])
        source = self.source_weight.expand(query.shape[0], -1, -1) if query.shape[0] > 1 else self.source_weight
        return torch.cat([query, source], dim=1).to(streams[0].dtype)


def read_streams_once(deploy: DeployNetwork) -> RewriteReport:
    """Stack the query's and the source's weights, so that the two streams are read once and never concatenated.

    With the spread query weight Q = W S and the merge M, both over the same 2C channels, and [.; .] stacking rows::

        Q [v; r], M [v; r]  =  [Q; M] [v; r]  =  [Q; M]_v v + [Q; M]_r r

    where the last form splits the columns by stream. Pooling each stream alone gives the same means.
    Needs: gather_weights.
    """
    done, skipped = 0, []
    for level, perturb in enumerate(deploy.network.perturbations, start=1):
        if isinstance(perturb.entry, SpreadEntry):
            perturb.entry = OnePassEntry(perturb.entry)
            done += 1
        elif not isinstance(perturb.entry, OnePassEntry):
            skipped.append(f"tcpm{level}: the query reads gathered channels; needs gather_weights")
    return RewriteReport("read_streams_once", done, tuple(skipped))
