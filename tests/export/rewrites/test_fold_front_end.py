from __future__ import annotations

from upfusion.export.rewrites.fold_front_end import fold_front_end


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_front_end"])[-1]
    assert report.rewritten == 1  # there is one front end
    assert fold_front_end(deploy).rewritten == 0  # nothing is left to change the second time


def test_drops_the_maps_that_it_replaces(deploy):
    fold_front_end(deploy)
    left = dict(deploy.network.named_children())
    assert not {"embed_visible", "embed_infrared", "expand", "modulate_visible", "modulate_infrared"} & left.keys()
