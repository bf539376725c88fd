"""Layer norms folded into the convolution behind them, so that no normalised map is written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.fold_norm_scale import Standardize, centred, norm_sites, scaled
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of, frozen, matrix
from upfusion.model.layers import LayerNorm2d, widen


class ConvOfNorm(nn.Module):
    """A 1x1 convolution of the standardised input, computed from the input as it is."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float, like: nn.Conv2d) -> None:
        """Own the weight (outputs, C) and bias (outputs,) that would follow the standardised map."""
        super().__init__()
        self.conv = conv_of(centred(weight), None, like=like)
        self.bias = frozen(bias[:, None, None], like.weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, outputs, H, W)."""
        wide = widen(x)
        deviation = wide - wide.mean(1, keepdim=True)
        scale = torch.rsqrt(deviation.square().mean(1, keepdim=True) + self.eps)  # (B, 1, H, W)
        mapped: Tensor = self.conv(x)
        return mapped * scale.to(x.dtype) + self.bias.to(x.dtype)


def fold_layer_norm(deploy: DeployNetwork) -> RewriteReport:
    """Divide the convolution's result by the standard deviation instead of its input.

    With scale g, shift b, and r = 1 / sqrt(var + eps), one plane::

        W LN(x)  =  (W_c x) * r + W b,    W_c = W diag(g) (I - 11^T / C)

    The variance is taken in two passes of the widened map (E[x^2] - E[x]^2 cancels). In half precision ``W_c x`` is
    rounded before it is scaled, where a normalised map would have been rounded; a runtime that protects the layer
    norm as one node no longer sees it.
    """
    done = 0
    for site in norm_sites(deploy):
        norm, conv = site.norm, site.conv
        if not isinstance(conv, nn.Conv2d):
            continue
        if isinstance(norm, LayerNorm2d):
            weight, bias = scaled(norm, conv)
        elif isinstance(norm, Standardize):
            weight, bias = matrix(conv), bias_of(conv)
        else:
            continue
        site.replace(nn.Identity(), ConvOfNorm(weight, bias, norm.eps, like=conv))
        done += 1
    return RewriteReport("fold_layer_norm", done)
