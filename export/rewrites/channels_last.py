"""Residual blocks on maps whose channels lie next to each other."""

from __future__ import annotations

from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.fold_norm_scale import Standardize, standardized
from upfusion.export.rewrites.group_feed_forward import GroupedFeedForward
from upfusion.export.rewrites.report import RewriteReport
from upfusion.model.layers import RestormerBlock


class ChannelsLastNorm(nn.Module):
    """Standardise each stream's channels where they lie next to each other."""

    def __init__(self, norm: Standardize) -> None:
        """Do as ``norm`` does."""
        super().__init__()
        self.eps, self.streams = norm.eps, norm.streams

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, streams * C) to (B, streams * C, H, W), for convolutions."""
        if self.streams == 1:
            standard = standardized(x, self.eps)
        else:
            standard = standardized(x.unflatten(-1, (self.streams, -1)), self.eps).reshape(x.shape)
        return standard.permute(0, 3, 1, 2)


class ChannelsLastBlock(nn.Module):
    """A block whose residual stream is (B, H, W, C), where a norm finds the channels it runs over."""

    def __init__(self, block: RestormerBlock) -> None:
        """Take over the parts of a block with standardising norms."""
        super().__init__()
        assert isinstance(block.norm_attention, Standardize)
        assert isinstance(block.norm_feed_forward, Standardize)
        self.norm_attention = ChannelsLastNorm(block.norm_attention)
        self.attention = block.attention
        self.between = block.between
        self.norm_feed_forward = ChannelsLastNorm(block.norm_feed_forward)
        self.feed_forward = block.feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, streams * C) to the same shape."""
        x = self.between(x + self.attention(self.norm_attention(x)).permute(0, 2, 3, 1))
        out: Tensor = self.feed_forward(self.norm_feed_forward(x), onto=x.permute(0, 3, 1, 2))
        return out.permute(0, 2, 3, 1)


class ChannelsLast(nn.Sequential):
    """Blocks of one level between a transposition to channels-last and one back."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        last: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return last.permute(0, 3, 1, 2)


def channels_last(deploy: DeployNetwork) -> RewriteReport:
    """Keep the residual stream of each level's blocks channels-last.

    A layer norm runs over the channels of a pixel, so a map (B, C, H, W) is transposed before it and after it. With
    the stream kept as (B, H, W, C) only what the convolutions read is transposed, and that is a matter of naming
    axes: compilers for tensor cores keep convolutions' maps channels-last. The feed-forward adds to the stream
    itself, whose memory then ends with the first group.
    Needs: fold_norm_scale, and split_gate or a rewrite that groups.
    """
    done: dict[nn.Module, ChannelsLast] = {}  # a level's blocks may have two owners
    for parent in list(deploy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential) and all(map(_fits, child)):
                done.setdefault(child, ChannelsLast(*map(ChannelsLastBlock, child)))
                setattr(parent, name, done[child])
    return RewriteReport("channels_last", sum(map(len, done)))


def _fits(block: nn.Module) -> bool:
    """Whether a module is a block whose parts are taken over."""
    return (
        isinstance(block, RestormerBlock)
        and isinstance(block.norm_feed_forward, Standardize)
        and isinstance(block.norm_attention, Standardize)
        and isinstance(block.feed_forward, GroupedFeedForward)
    )
