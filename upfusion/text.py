"""Text features: the prompt as the 512 numbers that fix the channel order of every perturbation module.

The raw output of CLIP ViT-B/32's text projection, not L2-normalised (norms are around 7 to 11), float32.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfusion.config import TEXT_DIM
from upfusion.runtime.errors import InputError, MissingDependencyError
from upfusion.runtime.files import replacing

log = logging.getLogger(__name__)

DEFAULT_PROMPT = (
    "The image contains multiple views of the same scene captured from different modalities, each providing "
    "complementary information. Focus on preserving fine details, semantic structures, and key regions that "
    "contribute to understanding the scene."
)
"""The prompt that the authors train and test with."""

CLIP_MODEL = "ViT-B-32-quickgelu"
"""open_clip's name of OpenAI's ViT-B/32 (their weights were trained with the quick GELU)."""
CLIP_ENCODER = "open_clip ViT-B-32 openai float32"
CLIP_WEIGHTS_ENV = "UPFUSION_CLIP_WEIGHTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeatures:
    """A text feature and where it comes from."""

    features: NDArray[np.float32]
    """(1, 512), not normalised."""
    prompt: str
    encoder: str

    def __post_init__(self) -> None:
        if self.features.shape != (1, TEXT_DIM) or not np.isfinite(self.features).all():
            raise InputError(
                f"a text feature must be {TEXT_DIM} finite numbers of shape (1, {TEXT_DIM}); "
                f"got shape {self.features.shape}",
                'make one with: upfusion text "PROMPT" -o text.npz',
            )

    @property
    def sha256(self) -> str:
        """Digest of the feature's bytes: another feature makes other decisions."""
        return hashlib.sha256(np.ascontiguousarray(self.features, np.float32).tobytes()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a ``.npz`` with ``features``, ``prompt`` and ``encoder``."""
        with replacing(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, features=self.features, prompt=self.prompt, encoder=self.encoder)


def load_text(path: str | Path) -> TextFeatures:
    """Read what :meth:`TextFeatures.save` wrote.

    Raises:
        InputError: the file is missing or is not a text feature.
    """
    remedy = 'make one with: upfusion text "PROMPT" -o text.npz'
    if not Path(path).is_file():
        raise InputError(f"{path}: no such text feature", remedy)
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a text feature: not an .npz file, or truncated", remedy)
    try:
        with np.load(path, allow_pickle=False) as file:
            return TextFeatures(
                features=file["features"].astype(np.float32),
                prompt=str(file["prompt"]),
                encoder=str(file["encoder"]),
            )
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a text feature: {error}", remedy) from error


def encode_text(prompt: str, weights: str | Path | None = None) -> TextFeatures:
    """Encode a prompt with OpenAI's CLIP ViT-B/32 in float32 on the CPU.

    Args:
        prompt: any English text; more than 77 tokens are cut by the tokenizer.
        weights: the file ``ViT-B-32.pt`` or open_clip's safetensors of it. Without it, the environment variable
            ``UPFUSION_CLIP_WEIGHTS``, then open_clip's own cache and download are used.

    Raises:
        MissingDependencyError: open_clip is not installed, or the weights cannot be had.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingDependencyError(
            "encoding text needs the package open_clip_torch", "pip install 'upfusion[text]'"
        ) from error
    import torch

    source = str(weights or os.environ.get(CLIP_WEIGHTS_ENV, "openai"))
    if source != "openai" and not Path(source).is_file():
        raise MissingDependencyError(f"{source}: no such CLIP weights file", _clip_remedy())
    try:
        model = open_clip.create_model(CLIP_MODEL, pretrained=source, precision="fp32", device="cpu")
        tokenizer = open_clip.get_tokenizer(CLIP_MODEL)
    except Exception as error:  # hub clients raise dozens of types; all mean the same here
        raise MissingDependencyError(
            f"the CLIP ViT-B/32 weights could not be loaded from {source}: {str(error).strip().splitlines()[0]}",
            _clip_remedy(),
        ) from error
    with torch.no_grad():
        features = model.eval().encode_text(tokenizer([prompt]))
    return TextFeatures(features=features.float().numpy(), prompt=prompt, encoder=CLIP_ENCODER)


def _clip_remedy() -> str:
    return (
        "download OpenAI's ViT-B-32.pt (338 MB; open_clip's hub name timm/vit_base_patch32_clip_224.openai) on a "
        f"machine with internet access and pass --weights ViT-B-32.pt, or set {CLIP_WEIGHTS_ENV} to its path"
    )


def stand_in_text(seed: int = 0) -> TextFeatures:
    """Return a fixed vector of CLIP's norm for networks that are trained where CLIP is out of reach.

    It says in ``encoder`` what it is: it carries no meaning, only a fixed channel order.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    features = generator.standard_normal((1, TEXT_DIM)) * (10.0 / np.sqrt(TEXT_DIM))
    return TextFeatures(
        features=features.astype(np.float32),
        prompt=DEFAULT_PROMPT,
        encoder=f"stand-in: a fixed random vector (seed {seed}), not an encoding of the prompt",
    )
