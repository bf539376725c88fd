from __future__ import annotations

import torch

from upfusion.export.rewrites.threshold_mask import MaskByThreshold, threshold_mask


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["threshold_mask"])[-1]
    assert report.rewritten == 4  # the perturbation modules
    assert threshold_mask(deploy).rewritten == 0  # nothing is left to change the second time


def test_keeps_all_tied_entries():
    logits = torch.tensor([[[[3.0, 1.0, 1.0, 0.0]]]])
    assert MaskByThreshold(2)(logits).tolist() == [[[[True, True, True, False]]]]
