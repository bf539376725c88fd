from __future__ import annotations

import pytest
from torch import nn

from upfusion.export.rewrites.split_qkv import split_qkv


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["split_qkv"])[-1]
    assert report.rewritten == 4  # blocks at full resolution: two encoders, decoder, refinement
    assert split_qkv(deploy).rewritten == 0  # nothing is left to change the second time
    assert isinstance(deploy.network.refinement[0].attention.to_qkv, nn.ModuleList)


@pytest.mark.parametrize("before", [["fold_norm_scale"], ["normalize_gram", "merge_attention_output"]])
def test_follows_the_other_forms(rewritten, before):
    rewritten([*before, "split_qkv"])


def test_declines_where_a_norm_is_folded_in(rewritten):
    report = rewritten(["fold_layer_norm", "split_qkv"])[-1]
    assert report.rewritten == 0
    assert "leave out fold_layer_norm" in report.skipped[0]
