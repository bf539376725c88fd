"""Queries and keys of the perturbation modules made and normalised as one map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, FixedOrderPerturbation, Rank, stacked
from upfusion.export.rewrites.fold_norm_scale import Standardize, standardized
from upfusion.export.rewrites.merge_attention_output import MergedOutput
from upfusion.export.rewrites.open_attention import OpenSelectiveAttention, mix_channels
from upfusion.export.rewrites.pair_encoders import paired_conv
from upfusion.export.rewrites.read_streams_once import OnePassEntry
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import conv_of


class StandardizedEntry(nn.Module):
    """Query and source standardised, as one map."""

    def __init__(self, entry: OnePassEntry, eps: float) -> None:
        """Take over the entry; ``eps`` is its norms'."""
        super().__init__()
        self.entry = entry
        self.eps = eps
        self.deferred = False
        """Whether the attention standardises instead (rewrite attend_in_strips)."""

    def forward(self, streams: tuple[Tensor, ...], rank: Rank) -> tuple[Tensor]:
        """Return (B, 2C, H, W), the query's channels first."""
        both = stacked(streams)
        pixels = both.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, 2C)
        mixed = pixels @ self.entry.weight((both,), rank).transpose(1, 2) + self.entry.bias.flatten().to(both.dtype)
        result = mixed if self.deferred else standardized(mixed.unflatten(-1, (2, -1)), self.eps)
        return (result.reshape(*both.shape[:1], *both.shape[2:], -1).permute(0, 3, 1, 2),)


class JointSelectiveAttention(nn.Module):
    """The perturbation module's attention on one map; the decision points are the trained module's own."""

    def __init__(self, opened: OpenSelectiveAttention) -> None:
        """Take over the parts, keys on the queries' side and values apart."""
        super().__init__()
        self.heads = opened.heads
        self.temperature = opened.temperature
        assert isinstance(opened.to_query, nn.Conv2d)
        assert isinstance(opened.to_key_value, nn.Conv2d)
        to_key, self.to_value = _halves(opened.to_key_value)
        key_depthwise, self.value_depthwise = _halves(opened.key_value_depthwise)
        self.to_query_key = paired_conv(opened.to_query, to_key)
        self.query_key_depthwise = paired_conv(opened.query_depthwise, key_depthwise)
        self.similarity = opened.similarity
        self.cosines: nn.Module | None = None
        """What makes the cosines of queries and keys in one go (rewrite attend_channels_last)."""
        self.norm_source: nn.Module = nn.Identity()
        self.mask = opened.mask
        assert isinstance(opened.output, MergedOutput)
        self.output = opened.output
        self.logits = opened.logits
        self.keep = opened.keep

    @property
    def deciding(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The convolutions whose result is compared and masked: they stay float32 when maps narrow.

        Rounding their weights alone moves logits enough to shift a whole image by three levels: one 128x160 image of
        the golden weights has 37.5 dB with them in half and 48.8 dB without.
        """
        return self.to_query_key, self.query_key_depthwise

    def forward(self, both: Tensor) -> Tensor:
        """Map standardised query and source, (B, 2C, H, W), to (B, C, H, W)."""
        source = self.norm_source(both.chunk(2, dim=1)[1])
        if self.cosines:
            cosines = self.cosines(both)
        else:
            channels = source.shape[1] // self.heads
            maps = self.query_key_depthwise(self.to_query_key(both.to(self.to_query_key.weight.dtype)))
            cosines = self.similarity((maps.reshape(both.shape[0], 2 * self.heads, channels, *both.shape[-2:]),), 1)
        logits = self.logits(cosines * self.temperature)
        attention = torch.where(self.keep(self.mask(logits)), logits, -torch.inf).softmax(-1)
        value = self.value_depthwise(self.to_value(source))
        return mix_channels(value, self.output.merged(attention).transpose(1, 2))


def join_query_key(deploy: DeployNetwork) -> RewriteReport:
    """Treat the perturbation modules' query and source as the two halves of one map.

    With z_q, z_s the standardised query and source, W_k and W_v the halves of the key-value convolution, and the
    depthwise convolutions cut alike::

        [q; k]  =  conv([z_q; z_s], weights [W_q; W_k], groups 2),    v  =  W_v z_s

    One norm for two, one pass for all norms of q and k, and the entry's result is never split. z_s is read twice.
    Needs: read_streams_once, merge_attention_output, fold_norm_scale; not fold_layer_norm.
    """
    done, skipped = 0, []
    for level, perturb in enumerate(deploy.network.perturbations, start=1):
        if isinstance(perturb.attention, JointSelectiveAttention):
            continue
        if not _can_join(perturb):
            skipped.append(
                f"tcpm{level}: needs read_streams_once, merge_attention_output and fold_norm_scale, and not "
                "fold_layer_norm"
            )
            continue
        perturb.entry = StandardizedEntry(perturb.entry, perturb.norm_query.eps)
        perturb.attention = JointSelectiveAttention(perturb.attention)
        perturb.norm_query = perturb.norm_source = nn.Identity()
        done += 1
    return RewriteReport("join_query_key", done, tuple(skipped))


def _can_join(perturb: FixedOrderPerturbation) -> bool:
    """Whether a perturbation module consists of parts that join."""
    attention = perturb.attention
    return (
        isinstance(perturb.entry, OnePassEntry)
        and isinstance(perturb.norm_query, Standardize)
        and isinstance(perturb.norm_source, Standardize)
        and isinstance(attention, OpenSelectiveAttention)
        and isinstance(attention.output, MergedOutput)
        and isinstance(attention.to_query, nn.Conv2d)
        and isinstance(attention.to_key_value, nn.Conv2d)
    )


def _halves(conv: nn.Conv2d) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return the two halves of a convolution's outputs; a depthwise one loses half its groups."""
    biases = (None, None) if conv.bias is None else conv.bias.detach().double().chunk(2)
    groups = 1 if conv.groups == 1 else conv.groups // 2
    first, second = (
        conv_of(weight, bias, like=conv, groups=groups)
        for weight, bias in zip(conv.weight.detach().double().chunk(2), biases, strict=True)
    )
    return first, second
