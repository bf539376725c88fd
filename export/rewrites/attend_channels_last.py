"""Attention on maps whose channels lie next to each other."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, blocks_at
from upfusion.export.rewrites.fold_norm_scale import Standardize
from upfusion.export.rewrites.join_query_key import JointSelectiveAttention
from upfusion.export.rewrites.merge_attention_output import MergedOutput
from upfusion.export.rewrites.normalize_gram import NormalizedGram
from upfusion.export.rewrites.open_attention import OpenAttention, mix_channels
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of, frozen, whole_matrix
from upfusion.model.layers import NORM_FLOOR, RestormerBlock, widen

MOST_RANKED = 384
"""Queries and keys of so many channels are multiplied whole.

All products of 2C channels are 4C multiply-adds for each value read: at 384 about what tensor cores do while memory
delivers the value, and beyond it the needless products between heads would cost more than copies spare.
"""


MOST_JOINT_HEADS = 2
"""Perturbation modules of so many heads are multiplied whole: each head's cosines are cut out by a node of its own, and
where there are more heads the maps are too small for that to pay."""


class ChannelsLastAttention(nn.Module):
    """MDTA whose queries and keys are one map that is multiplied with itself."""

    outside: Tensor | None
    value_means: Tensor | None
    """(1, C), what was taken from the values (``upfusion.export.precision``); None if nothing was."""

    def __init__(self, attention: OpenAttention, band_rows: int) -> None:
        """Take over the parts; the input must be standardised (:func:`bounding_scale`).

        ``band_rows`` rows of the map are summed by one product; it divides the map's height. Values are within
        [-1, 1], so no sum passes the largest half while a row has at most 65,504 / ``band_rows`` pixels.
        """
        super().__init__()
        pointwise, depthwise, output = attention.to_qkv, attention.depthwise, attention.output
        assert isinstance(pointwise, nn.Conv2d)
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(output, MergedOutput)
        streams = attention.streams
        places = torch.arange(pointwise.out_channels).reshape(streams, 3, -1)  # of each stream: queries, keys, values
        ranked, values = places[:, :2].transpose(0, 1).flatten(), places[:, 2].flatten()
        temperature = attention.temperature.detach().double().flatten()
        temperature = temperature.repeat_interleave(len(values) // len(temperature))  # of each query
        unit, size = torch.ones_like(temperature), torch.where(temperature == 0, 1.0, temperature.abs())
        scale = bounding_scale(pointwise, depthwise)[ranked]
        rows, bias = whole_matrix(pointwise), bias_of(pointwise)
        kernels = depthwise.weight.detach().double()
        to_query_key, self.to_value = (conv_of(rows[part], bias[part], pointwise) for part in (ranked, values))
        signed = scale * torch.cat([temperature.sign(), unit])
        query_key_depthwise = conv_of(kernels[ranked] * signed[:, None, None, None], None, depthwise, len(ranked))
        self.query_key_product = SelfProduct(to_query_key, query_key_depthwise, band_rows)
        self.norm_value: nn.Module = nn.Identity()
        self.value_depthwise = conv_of(kernels[values], None, depthwise, len(values))
        self.register_buffer("value_means", None)
        like = attention.temperature
        over = torch.cat([size, unit]).square().reciprocal()  # squared norms over squared temperatures
        self.floors = frozen(((NORM_FLOOR * scale) ** 2 * over)[:, None], like)
        self.diagonal = frozen(over.diag(), like)
        channels, heads = len(values), streams * attention.heads
        # (streams * heads, C, c): what each head's channels become, whatever axes the weight has for one of either.
        weights = output.weight.detach().double().reshape(heads, channels // streams, channels // heads)
        by_stream = weights.transpose(1, 2).reshape(streams, channels // streams, channels // streams)
        self.project = frozen(torch.block_diag(*by_stream), output.weight)
        within = torch.block_diag(*[like.new_ones(channels // heads, channels // heads)] * heads)
        # 0 within a head, -inf between heads
        self.register_buffer("outside", within.log() if heads > 1 else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, streams * C, H, W) to the same shape; both are read and written channels-last."""
        channels = x.shape[1]
        products = self.query_key_product(x)
        logits = cosines(products, self.diagonal, self.floors)[:, channels:, :channels]  # keys, queries
        if self.outside is not None:
            logits = logits + self.outside
        value = self.value_depthwise(self.to_value(self.norm_value(x)))
        return mix_channels(value, logits.softmax(-2) @ self.project, self.value_means)


class QueryKeyCosines(nn.Module):
    """Cosines of queries and keys, float32, from their map multiplied with itself."""

    def __init__(self, attention: JointSelectiveAttention, band_rows: int) -> None:
        """Take over the attention's convolutions; ``band_rows`` divides the map's height."""
        super().__init__()
        self.query_key_product = SelfProduct(attention.to_query_key, attention.query_key_depthwise, band_rows)
        channels = attention.to_query_key.out_channels
        self.diagonal = frozen(torch.eye(channels), attention.temperature)
        self.floor = frozen(torch.tensor(NORM_FLOOR**2), attention.temperature)
        starts = range(0, channels // 2, channels // 2 // attention.heads)
        self.queries = [slice(start, start + starts.step) for start in starts]
        self.keys = [slice(part.start + starts.stop, part.stop + starts.stop) for part in self.queries]

    def forward(self, both: Tensor) -> Tensor:
        """Map query and source (B, 2C, H, W) to the cosines (B, heads, c, c)."""
        found = cosines(self.query_key_product(both), self.diagonal, self.floor)
        return torch.stack([found[:, q, k] for q, k in zip(self.queries, self.keys, strict=True)], 1)


class SelfProduct(nn.Module):
    """Products of all channels of ``depthwise(pointwise(x))`` with each other."""

    def __init__(self, pointwise: nn.Conv2d, depthwise: nn.Conv2d, band_rows: int) -> None:
        """Own a 1x1 and a depthwise 3x3 convolution; sum ``band_rows`` rows at once, which divide the height."""
        super().__init__()
        self.pointwise, self.depthwise = pointwise, depthwise
        self.band_rows = band_rows

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, c, c), float32 or wider."""
        return self.of(self.depthwise(self.pointwise(x.to(self.pointwise.weight.dtype))))

    def of(self, maps: Tensor) -> Tensor:
        """Return the products (B, c, c) of maps (B, c, H, W), which are read channels-last."""
        batch, channels, height, width = maps.shape
        pixels = maps.permute(0, 2, 3, 1).reshape(batch * height // self.band_rows, self.band_rows * width, channels)
        bands = widen(pixels.transpose(1, 2) @ pixels)
        return bands.sum(0, keepdim=True) if batch == 1 else bands.unflatten(0, (batch, -1)).sum(1)


def cosines(products: Tensor, diagonal: Tensor, floors: Tensor) -> Tensor:
    """Return channels' products with each other, (B, c, c), over their norms, whose squares lie on the diagonal.

    Args:
        products: float32 or wider.
        diagonal: (c, c), what squared norms are multiplied with, on the diagonal.
        floors: smallest squared norms, (c, 1) or one for all.
    """
    norms = torch.maximum((products * diagonal).sum(-1, keepdim=True), floors).sqrt()
    return products / (norms * norms.transpose(1, 2))


def bounding_scale(pointwise: nn.Conv2d, depthwise: nn.Conv2d) -> Tensor:
    """Return for each output channel a power of two that keeps it within [-1, 1], float64, from the weights alone.

    A standardised pixel z of C channels has length sqrt(C) at most. By Cauchy and Schwarz, and by the sum over taps::

        |W_c z + b_c| <= |W_c| sqrt(C) + |b_c|,      |D_c * y_c| <= sum |D_c| max |y_c|
    """
    rows = pointwise.weight.detach().double().flatten(1)
    bound = rows.norm(dim=1) * math.sqrt(rows.shape[1]) + bias_of(pointwise).abs()
    bound *= depthwise.weight.detach().double().abs().flatten(1).sum(1)
    return torch.where(bound > 0, torch.exp2(-bound.log2().ceil()), 1.0)


def attend_channels_last(deploy: DeployNetwork) -> RewriteReport:
    """Multiply the map of queries and keys with itself, channels-last and band by band, where maps are largest.

    With X the map of queries and keys as rows of pixels, N x 2C, cut in bands i of pixels::

        X^T X  =  sum_i X_i^T X_i  =  [ |q|^2 on the diagonal    q k^T                  ]
                                      [ k q^T                    |k|^2 on the diagonal  ]

    One product gives all that the cosines need and reads the map once, where products and norms read it twice. In
    half precision it is taken of the half map: no copy is widened to float32. That is safe because cosines do not
    change when a channel is scaled: each is scaled by a power of two that bounds it (:func:`bounding_scale`), so no
    band overflows whatever the image, and the bands, each rounded once, are added in float32, where their rounding
    averages out (``upfusion.export.dither`` sees to it that bands differ): cosines of 307,200 pixels keep 4e-6 in
    60 bands, and 7e-5 should a compiler choose to add within a band in half, which in one go would cost 0.17. The
    temperature t goes in likewise: its sign into the queries, its size into their norms, |q| / |t|. Matrices with
    the bands as their only other axis are what TensorRT multiplies without a transposed copy of a convolution's
    result, which it keeps channels-last.

    Heads, and streams that are paired, are told apart by a mask in front of the softmax: their channels are multiplied
    with each other for nothing. So this is done where maps are largest and channels few (:data:`MOST_RANKED`).
    Perturbation modules of few heads (:data:`MOST_JOINT_HEADS`), whose queries and keys stay float32 and are one map
    after join_query_key, are multiplied so too.
    Needs: normalize_gram, merge_attention_output, fold_norm_scale.
    """
    done = 0
    for level in range(len(deploy.network.decoders)):
        for block in itertools.chain(*blocks_at(deploy, level)):
            if _can_attend(block):
                # A full-resolution height is a multiple of 8, and halves from level to level.
                block.attention = ChannelsLastAttention(block.attention, band_rows=8 >> level)
                done += 1
    for level, perturb in enumerate(deploy.network.perturbations):
        decides = perturb.attention
        joint = isinstance(decides, JointSelectiveAttention) and isinstance(decides.similarity, NormalizedGram)
        if joint and decides.cosines is None and decides.heads <= MOST_JOINT_HEADS:
            decides.cosines = QueryKeyCosines(decides, band_rows=8 >> level)
            done += 1
    return RewriteReport("attend_channels_last", done)


def _can_attend(block: RestormerBlock) -> bool:
    """Whether a block's attention consists of the parts that are taken over, with an input of bounded length."""
    attention = block.attention
    return (
        isinstance(attention, OpenAttention)
        and isinstance(block.norm_attention, Standardize)
        and isinstance(attention.similarity, NormalizedGram)
        and isinstance(attention.output, MergedOutput)
        and isinstance(attention.to_qkv, nn.Conv2d)
        and attention.to_qkv.out_channels * 2 // 3 <= MOST_RANKED
    )
