"""The deploy form: a copy of the trained network that takes two images and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upfusion.model import FusionNetwork
from upfusion.model.decisions import recording
from upfusion.model.layers import take_channels
from upfusion.model.network import luma
from upfusion.model.perturbation import ChannelPerturbation
from upfusion.text import TextFeatures


class FixedOrderPerturbation(nn.Module):
    """A channel perturbation whose text permutation is a constant.

    The text layers are gone; the permutation is a plain gather with constant indices. The squeeze branch stays: it
    ranks per image.
    """

    permutation: Tensor

    def __init__(self, trained: ChannelPerturbation, permutation: Tensor) -> None:
        """Take over the trained module's parts; ``permutation`` holds 2C channel indices."""
        super().__init__()
        self.kept = trained.kept
        self.squeeze = trained.squeeze
        self.mix = trained.mix
        self.merge = trained.merge
        self.norm_query = trained.norm_query
        self.norm_source = trained.norm_source
        self.attention = trained.attention
        self.norm_feed_forward = trained.norm_feed_forward
        self.feed_forward = trained.feed_forward
        self.score = trained.score
        self.order = trained.order
        self.register_buffer("permutation", permutation)

    rank = ChannelPerturbation.rank

    def forward(self, visible: Tensor, infrared: Tensor, text: None = None) -> Tensor:
        """Map two (B, C, H, W) streams to (B, C, H, W)."""
        both = torch.cat([visible, infrared], dim=1)
        mixed = self.mix(take_channels(both, self.rank(both)))  # type: ignore[misc]
        query = self.merge(mixed.index_select(1, self.permutation))
        attended: Tensor = self.attention(self.norm_query(query), self.norm_source(self.merge(both)))
        return attended + self.feed_forward(self.norm_feed_forward(attended))


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedText:
    """The constants that a prompt became."""

    permutations: Mapping[str, tuple[int, ...]]
    """``tcpm1`` .. ``tcpm4``: channel indices, largest text logit first."""
    smallest_gaps: Mapping[str, float]
    """``tcpm1`` .. ``tcpm4``: smallest difference of neighbouring logits in that order."""


class DeployNetwork(nn.Module):
    """The trained network with constants in place of the text: ``(visible, infrared) -> fused``."""

    def __init__(self, network: FusionNetwork) -> None:
        """Own ``network``, whose perturbation modules no longer read text."""
        super().__init__()
        self.network = network

    @property
    def map_dtype(self) -> torch.dtype:
        """Type of the feature maps behind the front end."""
        weight: Tensor = self.network.output.weight
        return weight.dtype

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        """Fuse (B, 3, H, W) RGB and (B, 1, H, W), float in 0..1, to (B, 1, H, W), not clamped.

        Height and width are multiples of 8. Edges stay float32 (or wider) whatever the maps are.
        """
        fused, _ = self.with_decisions(visible, infrared)
        return fused

    def with_decisions(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the fused image and the decisions behind it (names: ``upfusion.model.decisions``)."""
        with recording(self.network) as decisions:
            fused = self._fuse(visible, infrared)
        return fused, dict(decisions)

    def _fuse(self, visible: Tensor, infrared: Tensor) -> Tensor:
        network = self.network
        first, second = network.front_end(luma(visible), luma(infrared))
        levels = network.encode(first.to(self.map_dtype), second.to(self.map_dtype))
        fused = [perturb(*streams, None) for perturb, streams in zip(network.perturbations, levels, strict=True)]
        return network.decode(fused).to(visible.dtype)


def fix_text(model: FusionNetwork, text: TextFeatures) -> tuple[DeployNetwork, FixedText]:
    """Return a copy of the network in which the prompt is a constant, and what it became.

    The order of the text logits is all that the text does (module docstring of ``upfusion.model.perturbation``),
    so the layers that make them go, and a constant permutation of 2C channels per level stays. The logits are
    computed in the network's own precision: near ties must fall as they do in the network.
    """
    network = copy.deepcopy(model).eval()
    features = torch.from_numpy(text.features).to(next(network.parameters()).dtype)
    permutations: dict[str, tuple[int, ...]] = {}
    gaps: dict[str, float] = {}
    for index, trained in enumerate(network.perturbations):
        with torch.no_grad():
            logits = trained.text_layers(features)[0]
            permutation = trained.permute(features)[0]
        name = f"tcpm{index + 1}"
        permutations[name] = tuple(permutation.tolist())
        gaps[name] = float((-logits[permutation].double().diff()).min())
        network.perturbations[index] = FixedOrderPerturbation(trained, permutation)
    return DeployNetwork(network), FixedText(permutations=permutations, smallest_gaps=gaps)


def use_half_maps(deploy: DeployNetwork) -> None:
    """Turn every convolution behind the front end to FP16; change nothing else.

    The front end (embeddings, pruning, modulation), layer norms, squeeze layers and temperatures keep float32: a
    few thousand numbers and everything that is ranked. Each layer widens a half map itself before it takes
    statistics (``upfusion.model.layers.widen``).
    """
    network = deploy.network
    behind = [
        network.encoders_visible,
        network.encoders_infrared,
        network.downs,
        network.perturbations,
        network.ups,
        network.reduces,
        network.decoders,
        network.refinement,
        network.output,
    ]
    for part in behind:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                module.half()
    for perturb in network.perturbations:
        perturb.attention.output_scale.data = perturb.attention.output_scale.data.half()
