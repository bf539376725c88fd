"""The Gram matrix summed over bands of rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, blocks_at
from upfusion.export.rewrites.normalize_gram import NormalizedGram, spatial_norm
from upfusion.export.rewrites.open_attention import Maps, in_two, open_attentions
from upfusion.export.rewrites.report import RewriteReport
from upfusion.model.layers import NORM_FLOOR, widen

BANDS = 8
"""Divides the height of every full-resolution map."""


class BandedGram(nn.Module):
    """Multiply queries and keys band by band, then divide by their norms."""

    def forward(self, maps: Maps, axis: int) -> Tensor:
        """Return the cosines (..., heads, c, c), float32 or wider; ``axis`` is the one that may hold both maps."""
        products: Tensor | None = None
        of_bands: tuple[list[Tensor], list[Tensor]] = ([], [])  # norms of the queries, of the keys
        for band in zip(*(each.unflatten(-2, (BANDS, -1)).unbind(-3) for each in maps), strict=True):
            wide = tuple(widen(each) for each in band)
            q, k = in_two(tuple(each.flatten(-2) for each in wide), axis)
            product = q @ k.transpose(-2, -1)
            products = product if products is None else products + product
            for norms, norm in zip(of_bands, in_two(tuple(spatial_norm(each) for each in wide), axis), strict=True):
                norms.append(norm)
        assert products is not None
        norm_q, norm_k = (
            torch.linalg.vector_norm(torch.cat(norms, dim=-1), dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
            for norms in of_bands
        )
        return products / (norm_q * norm_k.transpose(-2, -1))


def band_gram(deploy: DeployNetwork) -> RewriteReport:
    """Sum products and squares of queries and keys over bands of rows, where maps are largest.

    With the rows of the image cut in bands i::

        q k^T  =  sum_i q_i k_i^T,    |q|^2  =  sum_i |q_i|^2

    Exact up to the order of the sums. In half precision only one band of queries and keys is widened to float32 at a
    time. Needs: normalize_gram.
    """
    attentions = open_attentions(deploy)
    largest = [block.attention for blocks in blocks_at(deploy, 0) for block in blocks]
    done = 0
    for attention in attentions:
        if attention in largest and isinstance(attention.similarity, NormalizedGram):
            attention.similarity = BandedGram()
            done += 1
    return RewriteReport("band_gram", done)
