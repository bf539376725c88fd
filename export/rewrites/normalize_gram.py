"""The Gram matrix normalised instead of the maps it is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.open_attention import CosineOfMaps, open_attentions
from upfusion.export.rewrites.report import RewriteReport
from upfusion.model.layers import NORM_FLOOR, widen


class NormalizedGram(nn.Module):
    """Multiply queries and keys, then divide by their norms."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the cosines (..., heads, c, c) of maps (..., heads, c, N), float32 or wider."""
        q, k = widen(q), widen(k)
        return q @ k.transpose(-2, -1) / (floored_norm(q) * floored_norm(k).transpose(-2, -1))


def floored_norm(rows: Tensor) -> Tensor:
    """Return each row's L2 norm, at least :data:`NORM_FLOOR`, of (..., c, N) as (..., c, 1)."""
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(NORM_FLOOR)


def normalize_gram(deploy: DeployNetwork) -> RewriteReport:
    """Divide c x c products by the norms instead of two maps of c x N.

    With the floored norms |q|, |k| of each channel along space, max(norm, 1e-12) as in the network::

        (q / |q|) (k / |k|)^T  =  (q k^T) / (|q| |k|^T)

    The floors stay on each norm, so rows of zeros give zeros here as there. Two passes that write normalised copies
    of q and k go. The sums over N leave FP16's range, so products and norms are taken of widened maps.
    """
    done = 0
    for attention in open_attentions(deploy):
        if isinstance(attention.similarity, CosineOfMaps):
            attention.similarity = NormalizedGram()
            done += 1
    return RewriteReport("normalize_gram", done)
