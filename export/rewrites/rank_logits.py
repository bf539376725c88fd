"""Channels ranked by logits instead of their sigmoids."""

from __future__ import annotations

from torch import nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.report import RewriteReport


def rank_logits(deploy: DeployNetwork) -> RewriteReport:
    """Leave the sigmoid out where only the rank of its result is used.

    The sigmoid is strictly increasing, so the order of ``sigmoid(z)`` is that of z; in floating point z has no ties
    where the sigmoid saturates or rounds. The ``score`` point then shows logits.

    Not done in the semantic pruning, which ranks a sum of two sigmoids.
    """
    done = 0
    for perturb in deploy.network.perturbations:
        if isinstance(perturb.squash, nn.Sigmoid):
            perturb.squash = nn.Identity()
            done += 1
    return RewriteReport("rank_logits", done)
