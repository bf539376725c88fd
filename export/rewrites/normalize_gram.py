"""The Gram matrix normalised instead of the maps it is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.open_attention import CosineOfMaps, Maps, in_two, open_attentions
from upfusion.export.rewrites.report import RewriteReport
from upfusion.model.layers import NORM_FLOOR, widen


class NormalizedGram(nn.Module):
    """Multiply queries and keys, then divide by their norms."""

    def forward(self, maps: Maps, axis: int) -> Tensor:
        """Return the cosines (..., heads, c, c), float32 or wider; ``axis`` is the one that may hold both maps.

        Where one map holds both, one pass takes all norms.
        """
        wide = tuple(widen(each) for each in maps)
        norm_q, norm_k = in_two(tuple(floored_norm(each) for each in wide), axis)
        q, k = in_two(tuple(each.flatten(-2) for each in wide), axis)
        return q @ k.transpose(-2, -1) / (norm_q * norm_k.transpose(-2, -1))


def floored_norm(maps: Tensor) -> Tensor:
    """Return each channel's L2 norm, at least :data:`NORM_FLOOR`, of (..., c, H, W) as (..., c, 1).

    The norm of the rows' norms: a sum over 300,000 pixels in one go loses 5e-5 of its value in libraries that add
    term by term (ONNX Runtime on the CPU, PyTorch on channels-last maps), and shifts the image; in two it keeps 4e-7.
    """
    rows = torch.linalg.vector_norm(maps, dim=-1)
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
