"""Queries and keys made in strips of rows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.attend_channels_last import ChannelsLastAttention, QueryKeyCosines, SelfProduct
from upfusion.export.rewrites.channels_last import ChannelsLastBlock, ChannelsLastNorm
from upfusion.export.rewrites.fold_norm_scale import Standardize
from upfusion.export.rewrites.report import RewriteReport

STRIPS = 4
"""Heights are multiples of 8, so each strip still has two rows at least."""


class SelfProductInStrips(SelfProduct):
    """The products of a map that is standardised and made strip by strip."""

    def __init__(self, whole: SelfProduct, norm: ChannelsLastNorm) -> None:
        """Take over the convolutions and the norm in front of them."""
        super().__init__(whole.pointwise, whole.depthwise, whole.band_rows // STRIPS)
        self.norm = norm
        self.depthwise.padding = (0, 1)  # a strip brings the rows above and below with it

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W), not standardised, to (B, c, c), float32 or wider."""
        last, rows = x.permute(0, 2, 3, 1), x.shape[2] // STRIPS
        upper = self._strip(last[:, : rows + 1], padding=(1, 0))
        inner = [self._strip(last[:, i * rows - 1 : (i + 1) * rows + 1], padding=(0, 0)) for i in range(1, STRIPS - 1)]
        lower = self._strip(last[:, (STRIPS - 1) * rows - 1 :], padding=(0, 1))
        return sum(inner, upper) + lower

    def _strip(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """Return the products of a strip (B, rows, W, C) with one row too many at each edge but the image's own."""
        maps = self.pointwise(self.norm(x).to(self.pointwise.weight.dtype))
        return self.of(self.depthwise(F.pad(maps, (0, 0, *padding))))


class ChannelsSecond(nn.Module):
    """Name the axes as convolutions do."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, C, H, W)."""
        return x.permute(0, 3, 1, 2)


def attend_in_strips(deploy: DeployNetwork) -> RewriteReport:
    """Make queries and keys at full resolution in strips, one after the other.

    With X_i the rows of pixels of strip i, made from the same rows of the input and one more above and below::

        X^T X  =  sum_i X_i^T X_i

    The maps of queries and keys are the widest that remain when the feed-forward is grouped; this leaves a quarter of
    them. Each strip is standardised by itself, so that the standardised map need not live beside them, and again for
    the values. The rows at the cuts are computed twice.
    Needs: attend_channels_last, channels_last; for the perturbation module, join_query_key.
    """
    done = 0
    network = deploy.network
    for block in (*network.decoders[0], *network.refinement):
        if isinstance(block, ChannelsLastBlock) and isinstance(block.attention, ChannelsLastAttention):
            norm = block.norm_attention
            if isinstance(norm, ChannelsLastNorm):
                block.attention.query_key_product = SelfProductInStrips(block.attention.query_key_product, norm)
                block.attention.norm_value = Standardize(norm.eps)
                block.norm_attention = ChannelsSecond()
                done += 1
    perturb = network.perturbations[0]
    cosines = getattr(perturb.attention, "cosines", None)
    if isinstance(cosines, QueryKeyCosines) and not isinstance(cosines.query_key_product, SelfProductInStrips):
        eps = perturb.entry.eps
        of_both = ChannelsLastNorm(Standardize(eps, streams=2))
        cosines.query_key_product = SelfProductInStrips(cosines.query_key_product, of_both)
        perturb.attention.norm_source = Standardize(eps)
        perturb.entry.deferred = True
        done += 1
    return RewriteReport("attend_in_strips", done)
