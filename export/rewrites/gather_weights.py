"""Per-image selections applied to weights instead of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, Rank, stacked
from upfusion.export.rewrites.fold_prompt import FoldedPromptEntry
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, frozen, matrix
from upfusion.model.layers import spatial_mean


def spread_columns(weight: Tensor, order: Tensor, channels: int) -> Tensor:
    """Move each column of a weight to the channel that it belongs to in each image; the other columns are zero.

    Written as a product with a one-hot matrix: exact, and plain matrix work for every backend, where a scatter would
    need an index as large as the weight.

    Args:
        weight: (outputs, k).
        order: (B, k) channel indices; column j belongs to channel ``order[b, j]``.
        channels: number of columns of the result.

    Returns:
        (B, outputs, channels).
    """
    places = torch.arange(channels, device=order.device)
    return weight @ (order.unsqueeze(-1) == places).to(weight.dtype)


def apply_matrix(weight: Tensor, x: Tensor) -> Tensor:
    """Multiply the channels of (B, C, H, W) by a matrix (B, outputs, C) per image, rounded to the map's type first."""
    product = weight.to(x.dtype) @ x.flatten(2)
    return product.unflatten(2, x.shape[-2:])


class SpreadEntry(nn.Module):
    """Query by a per-image matrix over all 2C channels; keys and values by the trained convolution."""

    def __init__(self, folded: FoldedPromptEntry) -> None:
        """Take over the folded convolution's values; they stay in their type when the maps narrow."""
        super().__init__()
        like = folded.query.weight
        self.query_weight = frozen(matrix(folded.query), like)  # (C, C)
        self.query_bias = frozen(bias_of(folded.query)[:, None, None], like)
        self.merge = folded.merge

    def forward(self, streams: tuple[Tensor, ...], rank: Rank) -> tuple[Tensor, Tensor]:
        """Return the maps of the query and of keys and values, (B, C, H, W) each."""
        both = stacked(streams)
        weight = spread_columns(self.query_weight, rank(spatial_mean(both)), both.shape[1])
        return apply_matrix(weight, both) + self.query_bias.to(both.dtype), self.merge(both)


def gather_weights(deploy: DeployNetwork) -> RewriteReport:
    """Spread the query's weight over all channels instead of gathering the selected ones.

    With S the selection of each image's k channels (k x 2C, one 1 a row)::

        W (S x)  =  (W S) x

    W S is k * C numbers per image where S x is k maps: the features are read once and no copy of them is written.
    Costs 2C / k = 2 times the query's multiplications.
    Needs: fold_prompt.
    """
    done, skipped = 0, []
    for level, perturb in enumerate(deploy.network.perturbations, start=1):
        if isinstance(perturb.entry, FoldedPromptEntry):
            perturb.entry = SpreadEntry(perturb.entry)
            done += 1
        elif not isinstance(perturb.entry, SpreadEntry):
            skipped.append(f"tcpm{level}: a convolution lies between the two gathers; needs fold_prompt")
    return RewriteReport("gather_weights", done, tuple(skipped))
