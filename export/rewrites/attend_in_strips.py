"""Queries and keys made in two strips of rows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.attend_channels_last import ChannelsLastAttention, QueryKeyCosines, SelfProduct
from upfusion.export.rewrites.channels_last import ChannelsLastBlock, ChannelsLastNorm
from upfusion.export.rewrites.fold_norm_scale import Standardize
from upfusion.export.rewrites.report import RewriteReport


class SelfProductInStrips(SelfProduct):
    """The products of a map that is standardised and made half by half."""

    def __init__(self, whole: SelfProduct, norm: ChannelsLastNorm) -> None:
        """Take over the convolutions and the norm in front of them."""
        super().__init__(whole.pointwise, whole.depthwise, whole.band_rows // 2)
        self.norm = norm
        self.depthwise.padding = (0, 1)  # a strip brings the rows above and below with it

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W), not standardised, to (B, c, c), float32 or wider."""
        rows = x.shape[2] // 2
        upper = self._strip(x[:, :, : rows + 1], (1, 0))
        return upper + self._strip(x[:, :, rows - 1 :], (0, 1))

    def _strip(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """Return the products of a strip whose inner edge has one row too many, its outer edge ``padding``."""
        maps = self.pointwise(self.norm(x.permute(0, 2, 3, 1)).to(self.pointwise.weight.dtype))
        return self.of(self.depthwise(F.pad(maps, (0, 0, *padding))))


class ChannelsSecond(nn.Module):
    """Name the axes as convolutions do."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, C, H, W)."""
        return x.permute(0, 3, 1, 2)


def attend_in_strips(deploy: DeployNetwork) -> RewriteReport:
    """Make the queries and keys of the upper half of the rows, then those of the lower half, at full resolution.

    With X_1 and X_2 the rows of pixels of both halves, each made from its half of the input and one row beyond::

        X^T X  =  X_1^T X_1 + X_2^T X_2

    The maps of queries and keys are the widest that remain when the feed-forward is grouped; this halves them. Each
    strip is standardised by itself, so that the standardised map need not live beside them, and again for the
    values. One row is computed twice.
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
