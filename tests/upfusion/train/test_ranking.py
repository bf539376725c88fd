"""Which layers learn: nothing that only ranks by default, everything with straight-through, one forward pass."""

from __future__ import annotations

import pytest
import torch

from upfusion.model import FusionNetwork
from upfusion.text import stand_in_text
from upfusion.train.ranking import RANKING_PARTS, set_ranking

TEXT = torch.from_numpy(stand_in_text().features)


def network(micro, ranking=None):
    torch.manual_seed(0)
    built = FusionNetwork(micro)
    built.pruning.trunk.eval()
    if ranking:
        set_ranking(built, ranking)
    return built


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 48, 48, generator=generator), torch.rand(2, 1, 48, 48, generator=generator), TEXT


def ranks_only(name):
    head = name.startswith(("pruning.", "perturbations."))
    return head and any(part in RANKING_PARTS for part in name.split(".")[:3])


def test_forward_values_and_tensors_are_the_same(micro):
    plain, learning = network(micro), network(micro, "straight-through")
    assert list(plain.state_dict()) == list(learning.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(learning(*inputs()), plain(*inputs()), rtol=0, atol=0)


@pytest.mark.parametrize("ranking", ["fixed", "straight-through"])
def test_who_gets_a_gradient(micro, ranking):
    built = network(micro, ranking)
    built(*inputs()).square().mean().backward()
    learns = {name for name, parameter in built.named_parameters() if parameter.grad is not None}
    everyone = {name for name, _ in built.named_parameters()}
    rankers = {name for name in everyone if ranks_only(name)}
    assert len(rankers) > 40
    assert learns == (everyone if ranking == "straight-through" else everyone - rankers)


def test_the_gradient_is_that_of_a_soft_gate(micro):
    built = network(micro, "straight-through")
    pruning = built.pruning
    x = torch.rand(1, micro.dim, 48, 48, generator=torch.Generator().manual_seed(2))
    caught = []
    pruning.score.register_forward_hook(lambda module, args, output: (output.retain_grad(), caught.append(output))[0])
    pruning(x).square().sum().backward()
    picked = caught[0].topk(pruning.kept, dim=1).indices[0]
    gates = torch.ones(pruning.kept, requires_grad=True)
    pruning.select(x[:, picked] * gates[None, :, None, None]).square().sum().backward()
    expected = torch.zeros(micro.dim).index_put((picked,), gates.grad)
    torch.testing.assert_close(caught[0].grad[0], expected, rtol=1e-5, atol=1e-5)
