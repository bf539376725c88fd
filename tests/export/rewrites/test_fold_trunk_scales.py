from __future__ import annotations

from upfusion.export.rewrites.fold_trunk_scales import fold_trunk_scales


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_trunk_scales"])[-1]
    assert report.rewritten == 5  # blocks of the small trunk
    assert fold_trunk_scales(deploy).rewritten == 0  # nothing is left to change the second time


def test_declines_blocks_without_layer_scale(deploy):
    deploy.network.pruning.trunk.stages[2].blocks[1].gamma = None
    report = fold_trunk_scales(deploy)
    assert report.rewritten == 4
    assert report.skipped == ("stages.2.blocks.1 is not a plain block with a layer scale",)
