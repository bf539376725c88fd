from __future__ import annotations

import torch

from upfusion.export.rewrites.gather_weights import gather_weights, spread_columns


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_prompt", "gather_weights"])[-1]
    assert report.rewritten == 4  # the perturbation modules
    assert gather_weights(deploy).rewritten == 0  # nothing is left to change the second time


def test_declines_without_fold_prompt(deploy):
    report = gather_weights(deploy)
    assert report.rewritten == 0
    assert "needs fold_prompt" in report.skipped[0]


def test_spreads_columns_exactly():
    weight = torch.randn(5, 3)
    order = torch.tensor([[6, 0, 2], [1, 2, 3]])
    wide = spread_columns(weight, order, 7)
    assert wide.shape == (2, 5, 7)
    for image in range(2):
        assert torch.equal(wide[image][:, order[image]], weight)
        rest = [channel for channel in range(7) if channel not in order[image]]
        assert not wide[image][:, rest].any()
