"""The network's shape as data, with the presets that the command line knows by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

TEXT_DIM = 512
"""Length of a CLIP ViT-B/32 text feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Constructor settings of a UP-Fusion network; the defaults are the paper's.

    Level k = 1..4 has ``dim * 2**(k-1)`` channels at 1/2**(k-1) of the resolution.
    """

    dim: int = 48
    """Channels of level 1."""
    num_blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    """Restormer blocks per level, in each encoder and in the decoder."""
    num_refinement_blocks: int = 4
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Attention heads per level; the decoder's full-resolution stage always has one."""
    ffn_expansion: float = 2.66
    """Hidden width of the gated feed-forward, as a factor of its channels (rounded down)."""
    text_hidden: int = 512
    """Hidden width of the layers that turn the text feature into a channel order."""
    convnext_depths: tuple[int, int, int, int] = (3, 3, 27, 3)
    convnext_dims: tuple[int, int, int, int] = (128, 256, 512, 1024)
    """The ConvNeXt trunk of the semantic channel pruning; the defaults are timm's ``convnext_base``."""

    def __post_init__(self) -> None:
        for name in ("num_blocks", "heads", "convnext_depths", "convnext_dims"):
            value = tuple(getattr(self, name))  # JSON gives lists
            if len(value) != 4:
                raise ValueError(f"{name} needs four entries, one a level; got {value}")
            object.__setattr__(self, name, value)
        for level, heads in enumerate(self.heads):
            if (self.dim << level) % heads:
                raise ValueError(f"{heads} heads do not divide the {self.dim << level} channels of level {level + 1}")

    def channels(self, level: int) -> int:
        """Return the channels of level 1..4."""
        return self.dim << (level - 1)

    def to_dict(self) -> dict[str, object]:
        """Return the settings as JSON-ready values."""
        return dataclasses.asdict(self)


PRESETS: dict[str, ModelConfig] = {
    # The released network: 154.8 million values in the file, 136.9 million in use.
    "base": ModelConfig(),
    # Between the two, for one's own training: no weights of this size are shipped. The trunk is timm's convnext_femto.
    "small": ModelConfig(
        dim=32,
        num_blocks=(2, 3, 4, 6),
        num_refinement_blocks=2,
        heads=(2, 4, 8, 16),
        ffn_expansion=2.0,
        text_hidden=256,
        convnext_depths=(2, 2, 6, 2),
        convnext_dims=(48, 96, 192, 384),
    ),
    # For edge devices and the demo: hidden widths that are multiples of 8, and a ConvNeXt trunk of half a million.
    "tiny": ModelConfig(
        dim=16,
        num_blocks=(1, 1, 1, 2),
        num_refinement_blocks=1,
        ffn_expansion=2.0,
        text_hidden=64,
        convnext_depths=(2, 2, 4, 2),
        convnext_dims=(16, 32, 64, 128),
    ),
}


def preset_name(config: ModelConfig) -> str:
    """Return the name of the preset that equals ``config``, or ``"custom"``."""
    return next((name for name, preset in PRESETS.items() if preset == config), "custom")
