from __future__ import annotations

import torch

from upfusion.export.rewrites import DEFAULTS
from upfusion.export.rewrites.pair_encoders import pair_encoders


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_norm_scale", "normalize_gram", "merge_attention_output", "split_gate", "pair_encoders"])[
        -1
    ]
    assert report.rewritten == 5  # block pairs of four levels
    assert pair_encoders(deploy).rewritten == 0  # nothing is left to change the second time


def test_declines_in_other_forms(deploy):
    report = pair_encoders(deploy)
    assert report.rewritten == 0
    assert "needs fold_norm_scale, normalize_gram, merge_attention_output and split_gate" in report.skipped[0]


def test_feeds_the_perturbation_modules_one_map(rewritten, deploy):
    """With every other rewrite before it, neither the front end nor the levels split or concatenate the streams."""
    rewritten(DEFAULTS["tensorrt"])
    assert not deploy.front_end.split
    (both,) = deploy.encode(torch.rand(1, 32, 8, 8, dtype=torch.float64))[0]
    assert both.shape == (1, 32, 8, 8)
