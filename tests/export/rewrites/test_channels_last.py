from __future__ import annotations

from upfusion.export.rewrites.channels_last import ChannelsLast, channels_last

NEEDS = ("normalize_gram", "merge_attention_output", "fold_norm_scale", "split_gate")


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten([*NEEDS, "pair_encoders", "attend_channels_last", "channels_last"])[-1]
    assert report.rewritten == 5 + 4  # pairs of blocks of the encoders; blocks of the decoder and the refinement
    assert isinstance(deploy.network.refinement, ChannelsLast)
    assert channels_last(deploy).rewritten == 0  # nothing is left to change the second time


def test_leaves_trained_norms_alone(deploy):
    assert channels_last(deploy).rewritten == 0
