"""The whole network: two encoders, a perturbation module per level, one decoder (UP-Fusion, arXiv 2511.12432)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upfusion.config import ModelConfig
from upfusion.model.layers import Downsample, RestormerBlock, Upsample, conv1x1, conv3x3
from upfusion.model.modulation import AffineModulation
from upfusion.model.perturbation import ChannelPerturbation
from upfusion.model.pruning import SemanticChannelPruning

LEVELS = 4
SIZE_MULTIPLE = 8
"""Height and width must be multiples of this: three halvings."""
LUMA_WEIGHTS = (0.299, 0.587, 0.114)


def luma(image: Tensor) -> Tensor:
    """Return (B, 1, H, W) luma of an RGB image (B, 3, H, W); one channel passes unchanged. Not rounded."""
    if image.shape[1] == 1:
        return image
    red, green, blue = (image[:, i : i + 1] * weight for i, weight in enumerate(LUMA_WEIGHTS))
    return red + green + blue


class FusionNetwork(nn.Module):
    """UP-Fusion. Level k is index k - 1 of each module list."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels(level) for level in range(1, LEVELS + 1)]
        expansion = config.ffn_expansion

        def blocks(count: int, channels: int, heads: int) -> nn.Sequential:
            return nn.Sequential(*(RestormerBlock(channels, heads, expansion) for _ in range(count)))

        def encoder() -> nn.ModuleList:
            return nn.ModuleList(map(blocks, config.num_blocks, widths, config.heads))

        dim = config.dim
        self.embed_visible = conv3x3(1, dim)
        self.embed_infrared = conv3x3(1, dim)
        self.pruning = SemanticChannelPruning(dim, config.convnext_depths, config.convnext_dims)
        self.expand = conv1x1(dim, 2 * dim, bias=True)
        self.modulate_visible = AffineModulation(dim)
        self.modulate_infrared = AffineModulation(dim)
        self.encoders_visible = encoder()
        self.encoders_infrared = encoder()
        self.downs = nn.ModuleList(map(Downsample, widths[:-1]))  # shared by both modalities
        self.perturbations = nn.ModuleList(
            ChannelPerturbation(width, heads, expansion, config.text_hidden)
            for width, heads in zip(widths, config.heads, strict=True)
        )
        self.ups = nn.ModuleList(map(Upsample, widths[1:]))
        # Level 1 has no reduction: its decoder works on 2C channels with one head.
        self.reduces = nn.ModuleList(conv1x1(2 * width, width) for width in widths[1:3])
        self.decoders = nn.ModuleList(
            [blocks(config.num_blocks[0], 2 * dim, config.heads[0])]
            + [blocks(config.num_blocks[i], widths[i], config.heads[i]) for i in (1, 2)]
        )
        self.refinement = blocks(config.num_refinement_blocks, 2 * dim, config.heads[0])
        self.output = conv3x3(2 * dim, 1)

    def front_end(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        """Return both streams at level 1, (B, C, H, W) each, from one-channel planes (B, 1, H, W)."""
        embedded_visible = self.embed_visible(visible)
        embedded_infrared = self.embed_infrared(infrared)
        shared = self.pruning((embedded_infrared + embedded_visible) / 2)
        first, second = self.expand(shared).chunk(2, dim=1)
        return (
            self.modulate_visible(first, embedded_visible),
            self.modulate_infrared(second, embedded_infrared),
        )

    def encode(self, first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return both encoders' maps at levels 1..4 from the level-1 streams."""
        levels = []
        for level in range(LEVELS):
            if level:
                first, second = self.downs[level - 1](first), self.downs[level - 1](second)
            first = self.encoders_visible[level](first)
            second = self.encoders_infrared[level](second)
            levels.append((first, second))
        return levels

    def decode(self, fused: list[Tensor]) -> Tensor:
        """Return the (B, 1, H, W) image from the perturbation outputs of levels 1..4."""
        x = fused[-1]
        for level in (2, 1, 0):
            x = torch.cat([self.ups[level](x), fused[level]], dim=1)
            if level:
                x = self.reduces[level - 1](x)
            x = self.decoders[level](x)
        return self.output(self.refinement(x))

    def forward(self, visible: Tensor, infrared: Tensor, text: Tensor) -> Tensor:
        """Fuse two registered images.

        Args:
            visible: (B, 3, H, W) RGB or (B, 1, H, W), float in 0..1; H and W multiples of 8.
            infrared: (B, 1, H, W) or (B, 3, H, W), float in 0..1.
            text: (1 or B, 512) CLIP text feature, not normalised.

        Returns:
            The fused luma, (B, 1, H, W), mostly in 0..1, not clamped.
        """
        levels = self.encode(*self.front_end(luma(visible), luma(infrared)))
        fused = [
            perturb(first, second, text) for perturb, (first, second) in zip(self.perturbations, levels, strict=True)
        ]
        return self.decode(fused)
