"""The loss of a recipe."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from upfusion.train.examples import DARK
from upfusion.train.objective import TERMS, objective
from upfusion.train.recipes import recipe_named

RECIPE = dataclasses.replace(
    recipe_named("paper"), terms=(("intensity", 2.0), ("gradient", 3.0)), visible_plane="luma", dark_terms=()
)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Fused, visible and infrared images of three pairs, of which the second is dark."""
    generator = torch.Generator().manual_seed(1)
    fused, infrared = (torch.rand(3, 1, 48, 48, generator=generator) for _ in range(2))
    visible = torch.rand(3, 3, 48, 48, generator=generator)
    infrared[1] *= DARK
    return fused, visible, infrared


def weighted(terms: tuple[tuple[str, float], ...], fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    luma = torch.einsum("bchw,c->bhw", visible, torch.tensor([0.299, 0.587, 0.114]))[:, None]
    return torch.stack([weight * TERMS[name](fused, luma, infrared) for name, weight in terms]).sum()


def test_it_is_the_weighted_sum(batch: tuple[Tensor, Tensor, Tensor]):
    total, terms = objective(RECIPE, *batch)
    torch.testing.assert_close(total, weighted(RECIPE.terms, *batch))
    assert total.item() == pytest.approx(2 * terms["intensity"].item() + 3 * terms["gradient"].item())


def test_dark_pairs_have_terms_of_their_own(batch: tuple[Tensor, Tensor, Tensor]):
    dark_terms = (("gradient", 7.0),)
    total, terms = objective(dataclasses.replace(RECIPE, dark_terms=dark_terms), *batch)
    bright, dark = ([image[places] for image in batch] for places in ([0, 2], [1]))
    expected = 2 / 3 * weighted(RECIPE.terms, *bright) + weighted(dark_terms, *dark) / 3
    torch.testing.assert_close(total, expected)
    assert set(terms) == {"intensity", "gradient", "dark gradient"}
    total, terms = objective(dataclasses.replace(RECIPE, dark_terms=dark_terms), *(image[1:2] for image in batch))
    assert set(terms) == {"dark gradient"}
    torch.testing.assert_close(total, weighted(dark_terms, *(image[1:2] for image in batch)))
