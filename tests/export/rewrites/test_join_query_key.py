from __future__ import annotations

from upfusion.export.rewrites import DEFAULTS
from upfusion.export.rewrites.join_query_key import JointSelectiveAttention, join_query_key

NEEDED = ["fold_prompt", "gather_weights", "read_streams_once", "merge_attention_output", "fold_norm_scale"]


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten([*NEEDED, "join_query_key"])[-1]
    assert report.rewritten == 4  # one perturbation module a level
    assert not report.skipped
    again = join_query_key(deploy)
    assert (again.rewritten, again.skipped) == (0, ())  # nothing is left to change the second time
    assert all(isinstance(perturb.attention, JointSelectiveAttention) for perturb in deploy.network.perturbations)


def test_follows_the_other_forms(rewritten, deploy):
    rewritten([*NEEDED, "normalize_gram", "threshold_mask", "rank_logits", "join_query_key"])
    assert isinstance(deploy.network.perturbations[0].attention, JointSelectiveAttention)


def test_declines_in_other_forms(rewritten):
    report = rewritten([*(name for name in DEFAULTS["cpu"]), "join_query_key"])
    joined = next(each for each in report if each.name == "join_query_key")
    assert joined.rewritten == 0
    assert "tcpm4: needs read_streams_once" in joined.skipped[-1]
