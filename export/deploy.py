"""The deploy form: a copy of the trained network that takes two images and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upfusion.export.dither import Dither
from upfusion.model import FusionNetwork
from upfusion.model.decisions import recording
from upfusion.model.layers import RestormerBlock, spatial_mean, take_channels
from upfusion.model.network import luma
from upfusion.model.perturbation import ChannelPerturbation, SelectiveAttention
from upfusion.text import TextFeatures

Rank = Callable[[Tensor], Tensor]
"""From pooled channels (B, 2C) to the best C of them, best first, (B, C)."""


def stacked(streams: tuple[Tensor, ...]) -> Tensor:
    """Return both streams as one (B, 2C, H, W) map, visible first."""
    return streams[0] if len(streams) == 1 else torch.cat(streams, dim=1)


class GatheredEntry(nn.Module):
    """What a perturbation module makes of its two streams before the attention, as the paper reads."""

    permutation: Tensor

    def __init__(self, mix: nn.Conv2d, merge: nn.Conv2d, permutation: Tensor) -> None:
        """Take over the trained convolutions; ``permutation`` holds 2C channel indices."""
        super().__init__()
        self.mix = mix
        self.merge = merge
        self.register_buffer("permutation", permutation)

    def forward(self, streams: tuple[Tensor, ...], rank: Rank) -> tuple[Tensor, Tensor]:
        """Return the maps of the query and of keys and values, (B, C, H, W) each, before their layer norms."""
        both = stacked(streams)
        mixed = self.mix(take_channels(both, rank(spatial_mean(both))))
        return self.merge(mixed.index_select(1, self.permutation)), self.merge(both)


class FixedOrderPerturbation(nn.Module):
    """A channel perturbation whose text permutation is a constant.

    The text layers are gone. The squeeze branch stays: it ranks per image. ``entry`` makes the attention's two
    inputs; ``squash`` lies between the squeeze branch and the rank.
    """

    def __init__(self, trained: ChannelPerturbation, permutation: Tensor) -> None:
        """Take over the trained module's parts; ``permutation`` holds 2C channel indices."""
        super().__init__()
        self.kept = trained.kept
        self.squeeze = trained.squeeze
        self.squash: nn.Module = nn.Sigmoid()
        self.score = trained.score
        self.order = trained.order
        self.entry: nn.Module = GatheredEntry(trained.mix, trained.merge, permutation)
        self.norm_query: nn.Module = trained.norm_query
        self.norm_source: nn.Module = trained.norm_source
        self.attention: nn.Module = trained.attention
        self.norm_feed_forward: nn.Module = trained.norm_feed_forward
        self.feed_forward: nn.Module = trained.feed_forward

    def rank(self, pooled: Tensor) -> Tensor:
        """Return the best C of 2C channels, best first, as (B, C) indices, from their means (B, 2C)."""
        weights: Tensor = self.score(self.squash(self.squeeze(pooled)))
        order: Tensor = self.order(weights.topk(self.kept, dim=1).indices)
        return order

    def forward(self, *streams: Tensor) -> Tensor:
        """Map two (B, C, H, W) streams, or one (B, 2C, H, W) that holds both, to (B, C, H, W)."""
        maps = self.entry(streams, self.rank)
        if len(maps) == 1:  # query and source in one map, standardised (rewrite join_query_key)
            attended: Tensor = self.attention(*maps)
        else:
            attended = self.attention(self.norm_query(maps[0]), self.norm_source(maps[1]))
        return attended + self.feed_forward(self.norm_feed_forward(attended))


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedText:
    """The constants that a prompt became."""

    permutations: Mapping[str, tuple[int, ...]]
    """``tcpm1`` .. ``tcpm4``: channel indices, largest text logit first."""
    smallest_gaps: Mapping[str, float]
    """``tcpm1`` .. ``tcpm4``: smallest difference of neighbouring logits in that order."""


class Encoders(nn.Module):
    """What stands for both encoders: level-1 streams in, maps of levels 1..4 out."""

    levels: nn.ModuleList
    """The blocks of each level, both streams' in one."""


class DeployNetwork(nn.Module):
    """The trained network with constants in place of the text: ``(visible, infrared) -> fused``.

    A rewrite replaces modules inside ``network``, or puts a module of its own in place of one of the network's three
    stages: ``front_end`` (planes -> two streams), ``encode`` (streams -> levels), ``decode`` (maps -> image).
    """

    def __init__(self, network: FusionNetwork) -> None:
        """Own ``network``, whose perturbation modules no longer read text."""
        super().__init__()
        self.network = network
        self.luma: Callable[[Tensor], Tensor] = luma
        self.front_end: nn.Module | None = None
        self.encode: Encoders | None = None
        self.decode: nn.Module | None = None
        self.dither: nn.Module | None = None
        """What the front end's streams pass before they are narrowed."""
        self.wide_streams = False
        """Whether the encoders read float32 streams when the maps are half; their first blocks narrow what follows."""

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
        streams = (self.front_end or network.front_end)(self.luma(visible), self.luma(infrared))
        if self.dither is not None:
            streams = self.dither(*streams)
        dtype = visible.dtype if self.wide_streams else self.map_dtype
        levels = (self.encode or network.encode)(*(stream.to(dtype) for stream in streams))
        fused = [perturb(*level) for perturb, level in zip(network.perturbations, levels, strict=True)]
        image: Tensor = (self.decode or network.decode)(fused)
        return image.to(visible.dtype)


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


FRONT_END = ("embed_visible", "embed_infrared", "pruning", "expand", "modulate_visible", "modulate_infrared")
"""The parts of the network whose maps stay float32."""


def use_half_maps(deploy: DeployNetwork, wide: Collection[nn.Module] = ()) -> None:
    """Turn every convolution behind the front end to FP16, and dither the streams that they read.

    The front end (embeddings, pruning, modulation), layer norms, squeeze layers and temperatures keep float32: a
    few thousand numbers and everything that is ranked. Each layer widens a half map itself before it takes
    statistics (``upfusion.model.layers.widen``).

    Paired encoders read the front end's streams in float32, and their first block narrows its norm's result and its
    first sum. Where an image is flat, as half of a medical one is, the rounding errors of a map are one error and no
    noise, and no other rounding moved what level 3 ranks as much as that of these streams. Encoders that run one after
    the other are chosen for their memory, and read half streams.

    Args:
        deploy: changed in place.
        wide: residual blocks whose stream half cannot hold; the first ones then read float32, and go on in it.
    """
    for conv in half_convolutions(deploy).values():
        conv.half()
    deploy.dither = Dither(2 * deploy.network.config.dim)
    for perturb in deploy.network.perturbations:
        if isinstance(perturb.attention, SelectiveAttention):
            perturb.attention.output_scale.data = perturb.attention.output_scale.data.half()
    first = first_blocks(deploy)
    deploy.wide_streams = deploy.encode is not None or any(block in wide for block in first)
    for block in first:
        if deploy.wide_streams and block not in wide:
            for part in ("norm_attention", "between"):
                block.get_submodule(part).register_forward_hook(_narrowed)


def _narrowed(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.half()


def half_convolutions(deploy: DeployNetwork) -> dict[str, nn.Conv2d]:
    """Return the convolutions behind the front end by module path, but for those that only make decisions."""
    behind = [part for name, part in deploy.network.named_children() if name not in FRONT_END]
    inside = {module for part in (*behind, deploy.encode, deploy.decode) if part for module in part.modules()}
    for perturb in deploy.network.perturbations:
        inside -= {*getattr(perturb.attention, "deciding", ())}
    named = deploy.named_modules()
    return {name: module for name, module in named if isinstance(module, nn.Conv2d) and module in inside}


def first_blocks(deploy: DeployNetwork) -> list[nn.Module]:
    """Return the first block of the encoders, or of each encoder: what reads the front end's streams."""
    return [next(levels[0].children()) for levels in _encoders(deploy)]


def blocks_at(deploy: DeployNetwork, level: int) -> tuple[list[RestormerBlock], list[RestormerBlock]]:
    """Return the blocks of a level that is decoded: the decoder's with the refinement's, and the encoders'.

    Level 0 is full resolution; the last level is encoded only.
    """
    network = deploy.network
    last = network.refinement if level == 0 else ()
    return [*network.decoders[level], *last], [block for levels in _encoders(deploy) for block in levels[level]]


def _encoders(deploy: DeployNetwork) -> list[nn.ModuleList]:
    """Return the levels of what stands for both encoders, or of each encoder."""
    network = deploy.network
    return [deploy.encode.levels] if deploy.encode else [network.encoders_visible, network.encoders_infrared]
