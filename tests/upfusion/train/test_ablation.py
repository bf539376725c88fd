"""Rows of the ablation table: each is built, trains, and leaves out what it says."""

from __future__ import annotations

import pytest
import torch

from upfusion.model import FusionNetwork
from upfusion.runtime.errors import InputError
from upfusion.text import stand_in_text
from upfusion.train.ablation import ABLATIONS, ablate
from upfusion.train.ranking import set_ranking

TEXT = torch.from_numpy(stand_in_text().features)


def ablated(micro, *without, ranking="fixed"):
    torch.manual_seed(0)
    built = FusionNetwork(micro)
    built.pruning.trunk.eval()
    ablate(built, without)
    set_ranking(built, ranking)
    return built


def images(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 48, 48, generator=generator), torch.rand(2, 1, 48, 48, generator=generator)


@pytest.mark.parametrize("ranking", ["fixed", "straight-through"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_learning_value_gets_a_gradient(micro, name, ranking):
    built = ablated(micro, name, ranking=ranking)
    fused = built(*images(), TEXT)
    assert fused.shape == (2, 1, 48, 48)
    fused.square().mean().backward()
    # DistributedDataParallel stops at a parameter without one.
    lacking = [n for n, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


def parameters(built):
    return {name for name, _ in built.named_parameters()}


def test_what_is_left_out_is_gone(micro):
    whole = parameters(ablated(micro))
    gone = {name: whole - parameters(ablated(micro, name)) for name in ABLATIONS}
    assert gone["pruning"] == {n for n in whole if n.startswith("pruning.")}
    assert gone["modulation"] == {n for n in whole if n.startswith("modulate_")}
    assert all(n.startswith("perturbations.") for n in gone["perturbation"])
    assert gone["pruning-attention"] == {n for n in whole if n.startswith("pruning.squeeze.")}
    assert gone["perturbation-attention"] == {n for n in whole if ".squeeze." in n and n.startswith("perturbations")}
    assert {n.split(".")[1] for n in gone["convnext"]} == {"to_rgb", "trunk", "trunk_head", "alpha"}


def test_unranked_perturbation_takes_the_streams_in_turn(micro):
    module = ablated(micro, "perturbation-attention").perturbations[0]
    order = module.rank(torch.rand(2, 16, 48, 48))
    assert order.tolist() == [[0, 8, 1, 9, 2, 10, 3, 11]] * 2


def test_without_convnext_the_statistics_rank(micro):
    pruning = ablated(micro, "convnext").pruning
    x = torch.rand(1, 8, 48, 48)
    torch.testing.assert_close(pruning.rank_weights(x), pruning.squeeze(x.mean((2, 3))))


@pytest.mark.parametrize("without", [("nothing",), ("pruning", "convnext"), ("pruning-attention", "convnext")])
def test_what_makes_no_sense_is_refused(micro, without):
    with pytest.raises(InputError, match="leave"):
        ablated(micro, *without)
