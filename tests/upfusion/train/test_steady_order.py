"""One channel order for all images: the same for each of them, the mean of those before, and nothing else changed."""

from __future__ import annotations

import copy

import pytest
import torch

from upfusion.model import FusionNetwork
from upfusion.model.decisions import recording
from upfusion.train.ablation import ablate
from upfusion.train.steady_order import make_order_steady


def batches(count=6, batch=1):
    generator = torch.Generator().manual_seed(3)
    for k in range(count):
        gain = 0.1 + 0.9 * k / count
        yield (
            gain * torch.rand(batch, 3, 48, 48, generator=generator),
            (1 - gain / 2) * torch.rand(batch, 1, 48, 48, generator=generator),
        )


def orders(network, pairs, text):
    """The orders of all perturbations, one row an image, by name."""
    seen = []
    with torch.no_grad(), recording(network) as decisions:
        for pair in pairs:
            network(*pair, text)
            seen.append({name: order for name, order in decisions.items() if name.endswith(".order")})
    return {name: torch.cat([found[name] for found in seen]) for name in seen[0] if name.startswith("tcpm")}


@pytest.fixture
def network(micro):
    torch.manual_seed(6)
    made = FusionNetwork(micro).eval()
    for module in made.perturbations:
        with torch.no_grad():
            module.squeeze[2].weight.mul_(3)
    return made


TEXT = torch.randn(1, 512, generator=torch.Generator().manual_seed(4))


def flat(visible, infrared):
    return torch.full((1, 3, 48, 48), visible), torch.full((1, 1, 48, 48), infrared)


def test_all_images_have_one_order_those_unlike_any_seen_too(network):
    before = orders(network, batches(), TEXT)
    assert any((order != order[:1]).any() for order in before.values()), "or there is nothing to settle"
    make_order_steady(network, batches(3), TEXT)
    unseen = [*batches(6, 2), flat(0.0, 0.0), flat(1.0, 1.0), flat(0.0, 1.0), flat(1.0, 0.0)]
    for name, order in orders(network, unseen, TEXT).items():
        assert (order == order[:1]).all(), name


def test_the_order_is_the_mean_of_those_before(network):
    """With one image it is that image's own, so the fused image stays what it was."""
    pair = next(batches(1))
    with torch.no_grad():
        before = network(*pair, TEXT)
        own = orders(network, [pair], TEXT)
        make_order_steady(network, [pair], TEXT)
        after = network(*pair, TEXT)
    assert all(torch.equal(order, own[name]) for name, order in orders(network, [pair], TEXT).items())
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_settling_again_keeps_the_order(network):
    make_order_steady(network, batches(), TEXT)
    once = orders(network, batches(1), TEXT)
    make_order_steady(network, batches(3), TEXT)
    assert all(torch.equal(order, once[name]) for name, order in orders(network, batches(1), TEXT).items())


def test_only_the_squeeze_layers_of_the_perturbations_change(network):
    before = copy.deepcopy(network.state_dict())
    network.train()
    make_order_steady(network, batches(2), TEXT)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"perturbations.{level}.squeeze.{layer}.weight" for level in range(4) for layer in (0, 2)}
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_perturbation_that_does_not_rank_is_left_alone(network):
    ablate(network, ["perturbation-attention"])
    before = copy.deepcopy(network.state_dict())
    make_order_steady(network, batches(2), TEXT)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
