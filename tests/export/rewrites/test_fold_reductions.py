from __future__ import annotations

from upfusion.export.rewrites.fold_reductions import fold_reductions


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_reductions"])[-1]
    assert report.rewritten == 2  # levels 2 and 3
    assert fold_reductions(deploy).rewritten == 0  # nothing is left to change the second time
