from __future__ import annotations

from upfusion.export.rewrites.fold_prompt import FoldedPromptEntry, fold_prompt


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["fold_prompt"])[-1]
    assert report.rewritten == 4  # the perturbation modules
    assert fold_prompt(deploy).rewritten == 0  # nothing is left to change the second time


def test_leaves_one_convolution_from_the_selected_channels(deploy):
    fold_prompt(deploy)
    for perturb in deploy.network.perturbations:
        assert isinstance(perturb.entry, FoldedPromptEntry)
        assert perturb.entry.query.in_channels == perturb.entry.query.out_channels == perturb.kept
