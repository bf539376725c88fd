from __future__ import annotations

from upfusion.export.rewrites.read_streams_once import read_streams_once


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_prompt", "gather_weights", "read_streams_once"])[-1]
    assert report.rewritten == 4  # the perturbation modules
    assert read_streams_once(deploy).rewritten == 0  # nothing is left to change the second time


def test_declines_without_gather_weights(deploy):
    report = read_streams_once(deploy)
    assert report.rewritten == 0
    assert "needs gather_weights" in report.skipped[0]
