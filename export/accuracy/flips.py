"""Where two runs decided differently, and how close each of those decisions was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from upfusion.model.margins import mask_margins


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """What moved at one decision site in one image."""

    moved: int
    """Places of the order, or entries of the mask, that differ from the reference's."""
    tied: int
    """How many of them the reference decided between equal values: by the habits of its sorting, not by the network."""
    of: int
    first_place: int
    """Rank of the best place that moved (0 is the top); -1 where nothing did, or at a mask."""
    margins: tuple[float, ...]
    """For each place that moved, how far apart the reference's values of the two channels are; for a mask, the gap
    at the edge of each row that moved. Small margins are near ties, large ones are errors. Largest first."""


def flips(reference: Tensor, taken: Tensor, values: Tensor) -> Flips:
    """Compare two decisions of one image.

    Args:
        reference: the reference's order (1, k), or its mask (1, heads, c, c).
        taken: the other decision, of the same shape.
        values: what the reference ranked: (1, n), or the logits (1, heads, c, c).
    """
    differ = reference != taken
    moved = int(differ.sum())
    if reference.dtype == torch.bool:
        rows, edges = differ.any(-1), mask_margins(values, reference)
        margins, first = edges[rows], -1
        tied = int(differ[edges == 0].sum())
    else:
        wide = values.double()
        margins = (wide.gather(1, reference) - wide.gather(1, taken))[differ].abs()
        first = int(differ[0].nonzero()[0]) if moved else -1
        tied = int((margins == 0).sum())
    ordered = tuple(sorted(margins.tolist(), reverse=True))
    return Flips(moved=moved, tied=tied, of=reference.numel(), first_place=first, margins=ordered)


def all_flips(
    reference: Mapping[str, Tensor], taken: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> dict[str, Flips]:
    """Compare the decisions that both runs took, by name."""
    return {name: flips(reference[name], taken[name], values[name]) for name in reference if name in taken}
