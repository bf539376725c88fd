from __future__ import annotations

import pytest

from upfusion.export.rewrites.split_query_key import split_query_key

NEEDS = ("normalize_gram", "merge_attention_output", "fold_norm_scale", "split_gate")


@pytest.mark.parametrize("pair", [(), ("pair_encoders",)])
def test_is_the_same_network_in_float64(rewritten, deploy, pair):
    report = rewritten([*NEEDS, *pair, "attend_channels_last", "split_query_key", "channels_last"])[-2]
    assert report.rewritten == (3 if pair else 4)  # blocks at full resolution: encoders, decoder, refinement
    assert split_query_key(deploy).rewritten == 0  # nothing is left to change the second time


def test_does_nothing_without_its_need(rewritten):
    assert rewritten(["split_query_key"])[-1].rewritten == 0
