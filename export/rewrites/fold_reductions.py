"""The decoder's channel reductions folded into the convolutions before them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import conv_of, matrix
from upfusion.model import FusionNetwork


class FoldedDecoder(nn.Module):
    """The decoder with each reduction half in the upsampling convolution and half on the skip connection."""

    def __init__(self, network: FusionNetwork) -> None:
        """Own the decoder's parts; the network keeps references to what is unchanged."""
        super().__init__()
        self.coarse, self.skips = nn.ModuleList(), nn.ModuleList()  # levels 2 and 3
        for up, reduce in zip(network.ups[1:], network.reduces, strict=True):
            from_coarse, from_skip = matrix(reduce).chunk(2, dim=1)
            kernel = up.conv.weight.double().unflatten(0, (-1, 4))  # (C, 4 places, inputs, 3, 3)
            folded = torch.einsum("oc,cpikl->opikl", from_coarse, kernel).flatten(0, 1)
            self.coarse.append(conv_of(folded, None, like=up.conv))
            self.skips.append(conv_of(from_skip, None, like=reduce))
        self.up = network.ups[0]
        self.decoders = network.decoders
        self.refinement = network.refinement
        self.output = network.output

    def forward(self, fused: list[Tensor]) -> Tensor:
        """Return the (B, 1, H, W) image from the perturbation outputs of levels 1..4."""
        x = fused[-1]
        for level in (2, 1):
            x = F.pixel_shuffle(self.coarse[level - 1](x), 2) + self.skips[level - 1](fused[level])
            x = self.decoders[level](x)
        x = torch.cat([self.up(x), fused[0]], dim=1)
        image: Tensor = self.output(self.refinement(self.decoders[0](x)))
        return image


def fold_reductions(deploy: DeployNetwork) -> RewriteReport:
    """Commute each 1x1 reduction with the pixel shuffle before it, and leave out the concatenation.

    A 1x1 convolution mixes channels, a pixel shuffle S moves places, so they commute when the 1x1 acts on each place
    alike. With the reduction R = [R_u R_s] over [upsampled; skip] and the 3x3 convolution K::

        R [S(K x); t]  =  S((R_u per place) K x) + R_s t

    R_u K is one 3x3 kernel of the size of K. At level 1 there is no reduction: its concatenation stays.
    """
    if deploy.decode is not None:
        return RewriteReport("fold_reductions", 0)
    network = deploy.network
    deploy.decode = FoldedDecoder(network)
    done = len(network.reduces)
    network.reduces = nn.ModuleList()
    network.ups = nn.ModuleList([network.ups[0]])
    return RewriteReport("fold_reductions", done)
