"""The loss of a recipe: a weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from upfusion import losses
from upfusion.model.network import luma
from upfusion.phase_loss import phase_transfer_loss
from upfusion.train.examples import are_dark, example_loss
from upfusion.train.recipes import Recipe

Term = Callable[[Tensor, Tensor, Tensor], Tensor]

TERMS: dict[str, Term] = {
    "intensity": losses.intensity_loss,
    "gradient": losses.gradient_loss,
    "structure": losses.structure_loss,
    "metric ssim": losses.metric_ssim_loss,
    "visual information": losses.visual_information_loss,
    "edge transfer": losses.edge_transfer_loss,
    "phase transfer": phase_transfer_loss,
    "example": example_loss,
}


def objective(recipe: Recipe, fused: Tensor, visible: Tensor, infrared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum and each term by name (without weight, detached; those of dark pairs are ``dark NAME``).

    Args:
        recipe: names the terms and the plane of the visible image that they see.
        fused: (B, 1, H, W), as the network returns it. Taken in float32 whatever it was computed in.
        visible: (B, 3, H, W) in 0..1.
        infrared: (B, 1, H, W) in 0..1.
    """
    first = losses.channel_mean(visible) if recipe.visible_plane == "mean" else luma(visible)
    fused = fused.float()
    dark = are_dark(first, infrared) & bool(recipe.dark_terms)
    totals: list[Tensor] = []
    seen: dict[str, Tensor] = {}
    for pairs, weighted in ((~dark, recipe.terms), (dark, recipe.dark_terms)):
        if pairs.any():
            terms = {name: TERMS[name](fused[pairs], first[pairs], infrared[pairs]) for name, _ in weighted}
            share = pairs.sum() / len(pairs)
            totals.append(share * torch.stack([weight * terms[name] for name, weight in weighted]).sum())
            prefix = "dark " if weighted is recipe.dark_terms else ""
            seen |= {prefix + name: term.detach() for name, term in terms.items()}
    return torch.stack(totals).sum(), seen
