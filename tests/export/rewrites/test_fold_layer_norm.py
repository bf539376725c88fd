from __future__ import annotations

from upfusion.export.rewrites.fold_layer_norm import fold_layer_norm


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_layer_norm"])[-1]
    assert report.rewritten == 40  # two in each of 14 blocks, three in each of 4 perturbation modules
    assert fold_layer_norm(deploy).rewritten == 0  # nothing is left to change the second time


def test_follows_fold_norm_scale(rewritten):
    assert [report.rewritten for report in rewritten(["fold_norm_scale", "fold_layer_norm"])] == [40, 40]
