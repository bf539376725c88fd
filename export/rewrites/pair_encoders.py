"""The two encoders run as one with twice the channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, Encoders, stacked
from upfusion.export.rewrites.fold_front_end import FoldedFrontEnd
from upfusion.export.rewrites.fold_norm_scale import Standardize
from upfusion.export.rewrites.group_feed_forward import GroupedFeedForward
from upfusion.export.rewrites.merge_attention_output import MergedOutput
from upfusion.export.rewrites.open_attention import OpenAttention
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import conv_of, whole_matrix
from upfusion.model import FusionNetwork
from upfusion.model.layers import RestormerBlock

WHOLE = 2
"""On so many levels, where maps are largest, projections onto the residual stream are convolutions of one group.

TensorRT-RTX adds the stream within such a convolution, and in a pass of its own after one with two groups.
"""


class PairedEncoders(Encoders):
    """Both encoders on one (B, 2C, H, W) map, visible channels first."""

    def __init__(self, network: FusionNetwork) -> None:
        """Pair the blocks of each level; the downsampling convolutions are shared already."""
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(*(paired_block(*blocks, whole=level < WHOLE) for blocks in zip(first, second, strict=True)))
            for level, (first, second) in enumerate(
                zip(network.encoders_visible, network.encoders_infrared, strict=True)
            )
        )
        self.downs = network.downs

    def forward(self, *streams: Tensor) -> list[tuple[Tensor]]:
        """Return the paired maps at levels 1..4 from the level-1 streams, together or apart."""
        x = stacked(streams)
        levels = []
        for level, blocks in enumerate(self.levels):
            if level:
                # As a batch of twice as many images: both streams have the same weights here.
                batch, _, height, width = x.shape
                halves = self.downs[level - 1].conv(x.reshape(batch * 2, -1, height, width))
                # The pixel unshuffle, with the streams back side by side in its first reshape.
                places = halves.reshape(batch, -1, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
                x = places.reshape(batch, -1, height // 2, width // 2)
            x = blocks(x)
            levels.append((x,))
        return levels


def pair_encoders(deploy: DeployNetwork) -> RewriteReport:
    """Stack the channels of both encoders, each convolution with two groups.

    The encoders have equal shapes and different weights. With x = [v; r]::

        [W_v v; W_r r]  =  conv([v; r], weights [W_v; W_r], groups 2)

    and norms, heads and depthwise convolutions act on each stream by themselves. Half as many, twice as large
    operations, and the perturbation modules find their concatenation ready. Both streams of a level live at once.
    Needs: fold_norm_scale, normalize_gram, merge_attention_output, split_gate.
    """
    network = deploy.network
    if deploy.encode is not None:
        return RewriteReport("pair_encoders", 0)
    blocks = [block for level in (*network.encoders_visible, *network.encoders_infrared) for block in level]
    if not all(map(can_pair, blocks)):
        return RewriteReport(
            "pair_encoders",
            0,
            (
                "the encoders' blocks are not in the form that pairs: needs fold_norm_scale, normalize_gram, "
                "merge_attention_output and split_gate, and not fold_layer_norm",
            ),
        )
    deploy.encode = PairedEncoders(network)
    for name in ("encoders_visible", "encoders_infrared", "downs"):
        delattr(network, name)
    if isinstance(deploy.front_end, FoldedFrontEnd):
        deploy.front_end.split = False
    return RewriteReport("pair_encoders", len(blocks) // 2)


def can_pair(block: RestormerBlock) -> bool:
    """Whether a block consists of parts that stack."""
    attention = block.attention
    return (
        isinstance(block.norm_attention, Standardize)
        and isinstance(block.norm_feed_forward, Standardize)
        and isinstance(attention, OpenAttention)
        and isinstance(attention.output, MergedOutput)
        and isinstance(block.feed_forward, GroupedFeedForward)
    )


def paired_block(first: RestormerBlock, second: RestormerBlock, *, whole: bool) -> RestormerBlock:
    """Return ``first`` changed to run both blocks on stacked channels.

    ``whole`` projections of the feed-forward have one group, with zeros between the streams.
    """
    for block in (first.norm_attention, first.norm_feed_forward):
        block.streams = 2
    ours, theirs = first.attention, second.attention
    ours.streams = 2
    ours.temperature = _stacked_parameters([ours.temperature, theirs.temperature])
    ours.to_qkv = paired(ours.to_qkv, theirs.to_qkv)
    ours.depthwise = paired(ours.depthwise, theirs.depthwise)
    ours.output.weight = _stacked_parameters([ours.output.weight, theirs.output.weight])
    for name, convs in list(first.feed_forward.named_children()):
        setattr(first.feed_forward, name, paired(convs, getattr(second.feed_forward, name)))
    if whole:
        first.feed_forward.project = nn.ModuleList(map(_ungrouped, first.feed_forward.project))
    return first


def _ungrouped(conv: nn.Module) -> nn.Conv2d:
    """Return a 1x1 convolution without bias as one of one group."""
    assert isinstance(conv, nn.Conv2d)
    return conv_of(whole_matrix(conv), None, conv)


def paired(first: nn.Module, second: nn.Module) -> nn.Module:
    """Return two convolutions, or two lists of them, as one."""
    if isinstance(first, nn.ModuleList) and isinstance(second, nn.ModuleList):
        return nn.ModuleList(map(paired, first, second))
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    return paired_conv(first, second)


def paired_conv(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """Return one convolution whose first channel groups are ``first``'s and last ``second``'s."""
    conv = nn.Conv2d(
        2 * first.in_channels,
        2 * first.out_channels,
        first.kernel_size,
        padding=first.padding,
        groups=2 * first.groups,
        bias=first.bias is not None,
        device="meta",
    )
    conv.weight = nn.Parameter(torch.cat([first.weight, second.weight]).detach(), requires_grad=False)
    if first.bias is not None and second.bias is not None:
        conv.bias = nn.Parameter(torch.cat([first.bias, second.bias]).detach(), requires_grad=False)
    return conv.eval()


def _stacked_parameters(values: Sequence[Tensor]) -> nn.Parameter:
    """Return the values stacked on a new first axis, one a stream."""
    return nn.Parameter(torch.stack([value.detach() for value in values]), requires_grad=False)
