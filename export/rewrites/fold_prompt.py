"""The prompt's permutation folded into one 1x1 convolution."""

from __future__ import annotations

from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, GatheredEntry, Rank, stacked
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of, matrix
from upfusion.model.layers import spatial_mean, take_channels


class FoldedPromptEntry(nn.Module):
    """Query from the selected channels by one convolution; keys and values from all of them by another."""

    def __init__(self, query: nn.Conv2d, merge: nn.Conv2d) -> None:
        """Own the folded convolution (C to C) and the trained one (2C to C)."""
        super().__init__()
        self.query = query
        self.merge = merge

    def forward(self, streams: tuple[Tensor, ...], rank: Rank) -> tuple[Tensor, Tensor]:
        """Return the maps of the query and of keys and values, (B, C, H, W) each."""
        both = stacked(streams)
        return self.query(take_channels(both, rank(spatial_mean(both)))), self.merge(both)


def fold_prompt(deploy: DeployNetwork) -> RewriteReport:
    """Make the text permutation part of a weight.

    For an engine the prompt is fixed, and so is the permutation P that it stands for. With mix (W1, b1) and merge
    (W, b)::

        W P (W1 s + b1) + b  =  (W P W1) s + (W P b1 + b)

    One C to C convolution of the selected channels s replaces C to 2C, a gather of 2C maps and 2C to C.
    """
    done = 0
    for perturb in deploy.network.perturbations:
        entry = perturb.entry
        if not isinstance(entry, GatheredEntry):
            continue
        merge = matrix(entry.merge)
        permuted, bias = matrix(entry.mix)[entry.permutation], bias_of(entry.mix)[entry.permutation]
        query = conv_of(merge @ permuted, merge @ bias + bias_of(entry.merge), like=entry.merge)
        perturb.entry = FoldedPromptEntry(query, entry.merge)
        done += 1
    return RewriteReport("fold_prompt", done)
