"""The output projection multiplied into the attention matrix."""

from __future__ import annotations

from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.open_attention import OpenAttention, ProjectedMaps, open_attentions
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import frozen, matrix


class MergedOutput(nn.Module):
    """Projection and attention as one matrix per image."""

    def __init__(self, weight: Tensor, heads: int, like: Tensor, *, head_axis: bool = True) -> None:
        """Own the projection (C, C), by heads if there is an axis for them; it keeps its type when maps narrow."""
        super().__init__()
        self.head_axis = head_axis
        by_head = weight.unflatten(-1, (heads, -1)).transpose(-3, -2) if head_axis else weight
        self.weight = frozen(by_head, like)  # (heads, C, c) or (C, C), behind an axis for streams if there are two

    def forward(self, attention: Tensor, v: Tensor) -> Tensor:
        """Map attention (..., heads, c, c) and values (..., heads, c, H, W) to (..., C, N)."""
        merged = self.merged(attention)
        return merged.to(v.dtype) @ v.reshape(*merged.shape[:-1], -1)

    def merged(self, attention: Tensor) -> Tensor:
        """Return each image's matrix (..., C, C) that values are multiplied with."""
        product = self.weight @ attention
        return product.transpose(-3, -2).flatten(-2) if self.head_axis else product


def merge_attention_output(deploy: DeployNetwork) -> RewriteReport:
    """Multiply the projection with the attention first, then with the values once.

    With the projection's columns split by head, W = [W_1 .. W_h], and A block-diagonal over heads::

        W (A v)  =  (W A) v,    W A = [W_1 A_1 .. W_h A_h]

    One C x C matrix per image and one pass over v replace two passes with a map between them. The perturbation
    modules' output scale is already a factor of W. The product W A is taken in the widened type and rounded once.
    """
    done = 0
    for attention in open_attentions(deploy):
        output = attention.output
        if isinstance(output, ProjectedMaps):
            headless = isinstance(attention, OpenAttention) and attention.heads == 1
            if headless:
                attention.drop_head_axis()
            attention.output = MergedOutput(
                matrix(output.project), attention.heads, output.project.weight, head_axis=not headless
            )
            done += 1
    return RewriteReport("merge_attention_output", done)
