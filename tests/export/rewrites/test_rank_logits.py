from __future__ import annotations

import torch

from upfusion.export.rewrites.rank_logits import rank_logits


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["rank_logits"])[-1]
    assert report.rewritten == 4  # the perturbation modules; the pruning ranks a sum of two sigmoids
    assert rank_logits(deploy).rewritten == 0  # nothing is left to change the second time


def test_orders_what_the_sigmoid_makes_equal(deploy):
    """Float32 sigmoids of logits beyond 17 are 1: their order is an accident, the logits' order is not."""
    perturb = deploy.network.perturbations[0].float()
    logits = torch.linspace(20, 60, 2 * perturb.kept)[None]
    perturb.squeeze = torch.nn.Identity()
    assert len(perturb.squash(logits).unique()) == 1
    rank_logits(deploy)
    assert perturb.rank(logits)[0].tolist() == list(range(2 * perturb.kept - 1, perturb.kept - 1, -1))
