"""``--ranking straight-through``: layers that only rank channels learn, and the deployed graph stays as it is.

Channels are picked by index, so no gradient reaches what the indices came from. Here every picked channel is
multiplied by ``1 + s - s.detach()`` with s its rank weight: exactly 1 forwards, and backwards the gradient that a
soft gate ``s`` in its place would have. Weights and forward values are those of the plain network, so a checkpoint of
either kind loads in the other.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from upfusion.model import FusionNetwork
from upfusion.model.layers import spatial_mean, take_channels
from upfusion.model.perturbation import ChannelPerturbation
from upfusion.model.pruning import SemanticChannelPruning

Ranking = Literal["fixed", "straight-through"]

RANKING_PARTS = ("squeeze", "to_rgb", "trunk", "trunk_head", "alpha", "text_layers")
"""Parts of the pruning and perturbation modules that decide indices and nothing else."""


def unit_gate(weights: Tensor) -> Tensor:
    """Return ones of shape (B, k, 1, 1) that pass their gradient on to weights (B, k)."""
    return (1 + (weights - weights.detach()))[..., None, None]


class StraightThroughPruning(SemanticChannelPruning):
    """Pruning whose rank weights learn; the same tensors and forward values as its parent's."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        best = self.rank_weights(x).topk(self.kept, dim=1)
        return self.select(take_channels(x, self.order(best.indices)) * unit_gate(best.values))


class StraightThroughPerturbation(ChannelPerturbation):
    """Perturbation whose squeeze weights and text layers learn; tensors and forward values are its parent's."""

    def forward(self, visible: Tensor, infrared: Tensor, text: Tensor) -> Tensor:
        """Map two (B, C, H, W) streams and a text feature (B or 1, 512) to (B, C, H, W)."""
        both = torch.cat([visible, infrared], dim=1)
        weights = self.score(self.squeeze(spatial_mean(both)).sigmoid())
        best = weights.topk(self.kept, dim=1)
        mixed = self.mix(take_channels(both, self.order(best.indices)) * unit_gate(best.values))
        # Sorted before the sigmoid, as the parent sorts: saturated values would tie.
        ranked = self.text_logits(self.text_layers(text)).sort(dim=1, descending=True)
        permutation = self.permutation(ranked.indices).expand(both.shape[0], -1)
        query = self.merge(take_channels(mixed, permutation) * unit_gate(ranked.values.sigmoid()))
        attended = self.attention(self.norm_query(query), self.norm_source(self.merge(both)))
        return attended + self.feed_forward(self.norm_feed_forward(attended))


LEARNERS: dict[type[nn.Module], type[nn.Module]] = {
    SemanticChannelPruning: StraightThroughPruning,
    ChannelPerturbation: StraightThroughPerturbation,
}


def set_ranking(network: FusionNetwork, ranking: Ranking) -> None:
    """Let the layers that only rank learn (``straight-through``), or freeze them as in the paper (``fixed``).

    A module whose ranking an ablation has taken away stays frozen.
    """
    modules: list[nn.Module] = [network.pruning, *network.perturbations]
    for module in modules:
        learner = LEARNERS.get(type(module)) if ranking == "straight-through" else None
        for name in RANKING_PARTS:
            part = getattr(module, name, None)
            if isinstance(part, nn.Module | nn.Parameter):
                part.requires_grad_(learner is not None)
        if learner is not None:
            module.__class__ = learner  # the same parameters under the same names; only forward differs
