"""How clear a decision was: the gaps between the values that it ranked.

Names of decisions are those of ``upfusion.model.decisions``; the values behind an order lie in the same module's
``score`` identity, those behind a mask in ``logits``.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from upfusion.model.decisions import record_outputs


def value_points(network: nn.Module) -> dict[str, nn.Module]:
    """Return the identities that carry the values behind each decision, by the decision's name."""
    points: dict[str, nn.Module] = {"scpm.order": network.pruning.score}  # type: ignore[union-attr, dict-item]
    for level, perturb in enumerate(network.perturbations, start=1):  # type: ignore[arg-type]
        points[f"tcpm{level}.order"] = perturb.score
        points[f"tcpm{level}.keep"] = perturb.attention.logits
    return points


def recording_values(network: nn.Module) -> contextlib.AbstractContextManager[dict[str, Tensor]]:
    """Return a context that yields a dictionary which each forward pass fills with the values behind decisions."""
    return record_outputs(value_points(network))


def order_margins(values: Tensor, chosen: int) -> Tensor:
    """Return the gaps of neighbours in descending order, (B, k), up to the first value that was not chosen.

    Args:
        values: (B, n), what was ranked.
        chosen: how many of them the decision takes; with ``chosen == n`` there are n - 1 gaps.
    """
    ordered = values.double().sort(dim=-1, descending=True).values
    return (ordered[..., :-1] - ordered[..., 1:])[..., :chosen]


def mask_margins(logits: Tensor, keep: Tensor) -> Tensor:
    """Return, for each row, the smallest logit kept minus the largest dropped: (B, heads, c)."""
    wide = logits.double()
    kept = wide.masked_fill(~keep, torch.inf).amin(-1)
    dropped = wide.masked_fill(keep, -torch.inf).amax(-1)
    return kept - dropped
