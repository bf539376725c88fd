"""The feed-forward's hidden channels in groups, gates apart from values."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork, blocks_at
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of
from upfusion.model.layers import GatedFeedForward


class GroupedFeedForward(nn.Module):
    """GDFN whose hidden channels are made, gated and projected group by group; the projections are added."""

    def __init__(self, trained: GatedFeedForward, groups: int) -> None:
        """Cut the trained weights into ``groups`` parts of nearly equal width, each a multiple of 8 if all can be."""
        super().__init__()
        self.expand_gate, self.expand_value = nn.ModuleList(), nn.ModuleList()
        self.depthwise_gate, self.depthwise_value = nn.ModuleList(), nn.ModuleList()
        self.project = nn.ModuleList()
        hidden = trained.project.in_channels
        expand, depthwise = trained.expand.weight.double(), trained.depthwise.weight.double()
        bias = None if trained.expand.bias is None else bias_of(trained.expand)
        for start, stop in pieces(hidden, groups):
            for half, expands, depthwises in (
                (0, self.expand_gate, self.depthwise_gate),
                (hidden, self.expand_value, self.depthwise_value),
            ):
                rows = slice(half + start, half + stop)
                expands.append(conv_of(expand[rows], None if bias is None else bias[rows], like=trained.expand))
                depthwises.append(conv_of(depthwise[rows], None, like=trained.depthwise, groups=stop - start))
            columns = trained.project.weight.double()[:, start:stop]
            self.project.append(conv_of(columns, None, like=trained.project))

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape, added to ``onto``: to it first, so that it need not wait for the sum."""
        total = onto
        for to_gate, gate, to_value, value, project in zip(
            self.expand_gate, self.depthwise_gate, self.expand_value, self.depthwise_value, self.project, strict=True
        ):
            part = project(F.gelu(gate(to_gate(x))) * value(to_value(x)))
            total = part if total is None else total + part
        assert total is not None
        return total


def pieces(hidden: int, groups: int) -> list[tuple[int, int]]:
    """Return ``groups`` ranges that cover ``hidden`` channels, in units of 8 where that divides it."""
    unit = 8 if hidden % 8 == 0 and hidden // 8 >= groups else 1
    edges = [round(hidden // unit * i / groups) * unit for i in range(groups + 1)]
    return list(itertools.pairwise(edges))


def split_gate(deploy: DeployNetwork) -> RewriteReport:
    """Make gates and values by convolutions of their own instead of one whose result is split.

    With the rows of expansion E and depthwise D cut in halves g and v::

        gelu(first half) * second half  =  gelu(D_g E_g x) * (D_v E_v x)

    Both products are elementwise on a whole convolution result, so a compiler can put them behind the depthwise
    convolutions, and gates and values need not exist at the same time before them. x is read twice.
    """
    return _grouped(deploy, "split_gate", {})


def group_feed_forward(deploy: DeployNetwork) -> RewriteReport:
    """Process the hidden channels in groups and add their projections, where maps are largest.

    With hidden channels cut in groups i, and P_i the columns of the projection for them::

        P (gelu(a) * b)  =  sum_i P_i (gelu(a_i) * b_i)

    Exact up to the order of the sum. Memory for hidden maps falls by the number of groups; x is read once for each
    group and the sum is read and written again. So groups are used only where the largest maps are: at full
    resolution 4 in the decoder's and the refinement's blocks (2C channels) and 2 in the encoders', at half resolution,
    where the encoders hold more maps beside their own, 2.
    """
    widest, others = blocks_at(deploy, 0)
    groups: dict[nn.Module, int] = dict.fromkeys(widest, 4)
    groups |= dict.fromkeys([*others, deploy.network.perturbations[0]], 2)
    groups |= dict.fromkeys(itertools.chain(*blocks_at(deploy, 1)), 2)
    return _grouped(deploy, "group_feed_forward", groups, only_named=True)


def halve_feed_forward(deploy: DeployNetwork) -> RewriteReport:
    """Process the hidden channels of the blocks at full resolution in two groups (see :func:`group_feed_forward`).

    Two groups bring the feed-forward's memory down to the attention's, and cost little: with the first projection
    added to the block's input, the sum is read where the input was.
    """
    widest, others = blocks_at(deploy, 0)
    return _grouped(deploy, "halve_feed_forward", dict.fromkeys([*widest, *others], 2), only_named=True)


def _grouped(
    deploy: DeployNetwork, name: str, groups: dict[nn.Module, int], *, only_named: bool = False
) -> RewriteReport:
    """Replace trained feed-forwards; ``groups`` names owners that get more than one group."""
    done = 0
    for owner in deploy.network.modules():
        feed_forward = getattr(owner, "feed_forward", None)
        if not isinstance(feed_forward, GatedFeedForward) or (only_named and owner not in groups):
            continue
        if not isinstance(feed_forward.expand, nn.Conv2d):
            continue
        owner.feed_forward = GroupedFeedForward(feed_forward, groups.get(owner, 1))
        done += 1
    return RewriteReport(name, done)
