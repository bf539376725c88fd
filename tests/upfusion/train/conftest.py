"""A micro network and a folder of small pairs, so that a step takes a blink."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from upfusion.config import PRESETS, ModelConfig

MICRO = ModelConfig(
    dim=8,
    num_blocks=(1, 1, 1, 1),
    num_refinement_blocks=1,
    heads=(1, 1, 1, 1),
    ffn_expansion=2.0,
    text_hidden=8,
    convnext_depths=(1, 1, 1, 1),
    convnext_dims=(8, 8, 8, 8),
)


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread: the networks are too small for two, and bit-exactness holds for a thread count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def micro(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """The preset ``micro``."""
    monkeypatch.setitem(PRESETS, "micro", MICRO)
    return MICRO


def write_pairs(folder: Path, count: int = 5, size: tuple[int, int] = (64, 72)) -> Path:
    """Write a data set of smooth random pairs, the first image in colour."""
    random = np.random.Generator(np.random.PCG64(count))
    for name in ("vis", "ir"):
        (folder / name).mkdir(parents=True)
    for place in range(count):
        first = cv2.GaussianBlur(random.uniform(0, 255, (*size, 3)), (0, 0), 3)
        second = cv2.GaussianBlur(random.uniform(0, 255, size), (0, 0), 3)
        for name, image in (("vis", first), ("ir", second)):
            levels = 255 * (image - image.min()) / np.ptp(image)
            cv2.imwrite(str(folder / name / f"p{place}.png"), levels.astype(np.uint8))
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A data set of five pairs."""
    return write_pairs(tmp_path / "set")
