from __future__ import annotations

from upfusion.export.rewrites.group_feed_forward import split_gate


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["split_gate"])[-1]
    assert report.rewritten == 18  # 14 blocks and 4 perturbation modules
    assert split_gate(deploy).rewritten == 0  # nothing is left to change the second time


def test_follows_padding_and_folded_scales(rewritten):
    rewritten(["fold_norm_scale", "pad_hidden", "split_gate"])
