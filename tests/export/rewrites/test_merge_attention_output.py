from __future__ import annotations

from upfusion.export.rewrites.merge_attention_output import merge_attention_output


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["merge_attention_output"])[-1]
    assert report.rewritten == 18  # 14 blocks and 4 perturbation modules
    assert merge_attention_output(deploy).rewritten == 0  # nothing is left to change the second time
