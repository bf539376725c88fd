"""The attention mask by a threshold instead of a scatter."""

from __future__ import annotations

from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.open_attention import MaskByScatter, OpenSelectiveAttention, open_attentions
from upfusion.export.rewrites.report import RewriteReport


class MaskByThreshold(nn.Module):
    """Keep what is not below each row's k-th largest logit."""

    def __init__(self, kept: int) -> None:
        """Keep this many logits of each row."""
        super().__init__()
        self.kept = kept

    def forward(self, logits: Tensor) -> Tensor:
        """Return which entries of (B, heads, c, c) stay, as booleans."""
        return logits >= logits.topk(self.kept, dim=-1).values[..., -1:]


def threshold_mask(deploy: DeployNetwork) -> RewriteReport:
    """Compare with the k-th largest logit of the row instead of scattering ``True`` to k indices.

    With t the k-th largest of a row, the k largest entries are exactly those with ``logit >= t``: no index, no
    scatter. On an exact tie at t the comparison keeps all tied entries, where the indices keep some of them.
    """
    done = 0
    for attention in open_attentions(deploy):
        if isinstance(attention, OpenSelectiveAttention) and isinstance(attention.mask, MaskByScatter):
            attention.mask = MaskByThreshold(attention.mask.kept)
            done += 1
    return RewriteReport("threshold_mask", done)
