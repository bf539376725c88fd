"""Scale and shift of each layer norm folded into the convolution behind it."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, FixedOrderPerturbation
from upfusion.export.rewrites.open_attention import OpenAttention, OpenSelectiveAttention, open_attentions
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of, matrix
from upfusion.model.layers import GatedFeedForward, LayerNorm2d, RestormerBlock


class Standardize(nn.Module):
    """Layer norm over the channels of each pixel without scale and shift."""

    def __init__(self, eps: float, streams: int = 1) -> None:
        """Standardise each of ``streams`` equal groups of channels on its own."""
        super().__init__()
        self.eps = eps
        self.streams = streams

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, streams * C, H, W) to the same shape."""
        channels = x.shape[1] // self.streams
        if self.streams == 1:
            return standardized(x.permute(0, 2, 3, 1), self.eps).permute(0, 3, 1, 2)
        pixels = x.reshape(x.shape[0] * self.streams, channels, -1).transpose(1, 2)
        return standardized(pixels, self.eps).transpose(1, 2).reshape(x.shape)


def standardized(x: Tensor, eps: float) -> Tensor:
    """Return ``x`` with mean 0 and variance 1 (less ``eps``) along its last axis.

    A half map is not widened: the one node LayerNormalization takes its statistics in float32 whatever its input
    (ONNX: stash_type 1), and so does TensorRT's normalisation layer.
    """
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class NormSite:
    """One layer norm, the convolution that reads it, and where both are kept."""

    def __init__(self, owner: nn.Module, norm: str, reader: nn.Module, conv: str) -> None:
        self.owner, self.norm_name = owner, norm
        self.reader, self.conv_name = reader, conv

    @property
    def norm(self) -> nn.Module:
        """The module that normalises."""
        module: nn.Module = getattr(self.owner, self.norm_name)
        return module

    @property
    def conv(self) -> nn.Module:
        """The module that reads the normalised map, and alone reads it."""
        module: nn.Module = getattr(self.reader, self.conv_name)
        return module

    def replace(self, norm: nn.Module, conv: nn.Module) -> None:
        """Put two modules in place of the pair."""
        setattr(self.owner, self.norm_name, norm)
        setattr(self.reader, self.conv_name, conv)


def norm_sites(deploy: DeployNetwork) -> Iterator[NormSite]:
    """Yield every layer norm of blocks and perturbation modules with the 1x1 convolution behind it."""
    open_attentions(deploy)
    for module in deploy.network.modules():
        if isinstance(module, RestormerBlock) and isinstance(module.attention, OpenAttention):
            yield NormSite(module, "norm_attention", module.attention, "to_qkv")
        elif isinstance(module, FixedOrderPerturbation) and isinstance(module.attention, OpenSelectiveAttention):
            yield NormSite(module, "norm_query", module.attention, "to_query")
            yield NormSite(module, "norm_source", module.attention, "to_key_value")
        else:
            continue
        if isinstance(module.feed_forward, GatedFeedForward):
            yield NormSite(module, "norm_feed_forward", module.feed_forward, "expand")


def fold_norm_scale(deploy: DeployNetwork) -> RewriteReport:
    """Move each layer norm's scale g and shift b into the 1x1 convolution that reads it.

    With z the standardised map::

        W (g * z + b)  =  (W diag(g)) z + W b

    The product W diag(g) is rounded once, where weight and scale were rounded apart, and the normalisation is left
    without parameters. The convolution gains a bias.
    """
    done = 0
    for site in norm_sites(deploy):
        norm, conv = site.norm, site.conv
        if isinstance(norm, LayerNorm2d) and isinstance(conv, nn.Conv2d):
            weight, bias = scaled(norm, conv)
            site.replace(Standardize(norm.eps), conv_of(weight, bias, like=conv))
            done += 1
    return RewriteReport("fold_norm_scale", done)


def scaled(norm: LayerNorm2d, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return ``W diag(g)`` and ``W b`` (plus the convolution's own bias), float64."""
    weight = matrix(conv)
    scale: Tensor = norm.weight.detach().double()
    shift: Tensor = norm.bias.detach().double()
    return weight * scale, weight @ shift + bias_of(conv)


def centred(weight: Tensor) -> Tensor:
    """Return ``W (I - 11^T / C)``: the same map on inputs whose mean over channels was taken off."""
    return weight - weight.mean(dim=1, keepdim=True)
