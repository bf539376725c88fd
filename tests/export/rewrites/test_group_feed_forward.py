from __future__ import annotations

from upfusion.export.rewrites.group_feed_forward import group_feed_forward, halve_feed_forward, pieces


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["group_feed_forward"])[-1]
    assert report.rewritten == 8  # at full resolution two encoders, perturbation, decoder, refinement; at half, three
    assert group_feed_forward(deploy).rewritten == 0  # nothing is left to change the second time


def test_halves_are_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["halve_feed_forward"])[-1]
    assert report.rewritten == 4  # blocks at full resolution: two encoders, decoder, refinement
    assert halve_feed_forward(deploy).rewritten == 0  # nothing is left to change the second time


def test_follows_padding_and_folded_scales(rewritten):
    rewritten(["fold_norm_scale", "pad_hidden", "group_feed_forward"])


def test_cuts_in_units_of_8():
    assert pieces(256, 4) == [(0, 64), (64, 128), (128, 192), (192, 256)]
    assert pieces(24, 2) == [(0, 16), (16, 24)]
    assert pieces(255, 2) == [(0, 128), (128, 255)]
