from __future__ import annotations

from upfusion.export.rewrites.fold_norm_scale import fold_norm_scale


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_norm_scale"])[-1]
    assert report.rewritten == 40  # two in each of 14 blocks, three in each of 4 perturbation modules
    assert fold_norm_scale(deploy).rewritten == 0  # nothing is left to change the second time
