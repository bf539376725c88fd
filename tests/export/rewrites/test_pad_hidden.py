from __future__ import annotations

from upfusion.export.rewrites.pad_hidden import pad_hidden
from upfusion.model.layers import GatedFeedForward


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["pad_hidden"])[-1]
    assert report.rewritten == 18  # 14 blocks and 4 perturbation modules: int(2.66 * 16) = 42 and so on
    assert pad_hidden(deploy).rewritten == 0  # nothing is left to change the second time


def test_leaves_only_multiples_of_8(deploy):
    pad_hidden(deploy)
    widths = {module.project.in_channels for module in deploy.modules() if isinstance(module, GatedFeedForward)}
    assert widths == {48, 88, 176, 344}
    assert pad_hidden(deploy).skipped[0] == "48 hidden channels are a multiple of 8 already"


def test_follows_fold_norm_scale(rewritten):
    """The expansion then has a bias, which is padded too."""
    rewritten(["fold_norm_scale", "pad_hidden"])
