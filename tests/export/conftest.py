"""A small network with every part, its checkpoint file, and graphs exported from it once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from upfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upfusion.config import ModelConfig
from upfusion.export.onnx_export import ExportOptions, export_onnx
from upfusion.model import FusionNetwork
from upfusion.text import stand_in_text

SMALL = ModelConfig(
    dim=16,
    num_blocks=(1, 1, 1, 1),
    num_refinement_blocks=1,
    ffn_expansion=2.0,
    text_hidden=32,
    convnext_depths=(1, 1, 1, 1),
    convnext_dims=(8, 16, 24, 32),
)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random network in our format, with a stand-in text."""
    torch.manual_seed(11)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(FusionNetwork(SMALL), path, text=stand_in_text(), provenance={"weights": "random"})
    return load_checkpoint(path)


@pytest.fixture(scope="session")
def exported(small_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[ExportOptions], Path]:
    """Return the ONNX file of the small network for some options; each is exported once."""
    made: dict[ExportOptions, Path] = {}

    def export(options: ExportOptions) -> Path:
        if options not in made:
            path = tmp_path_factory.mktemp("graph") / "small.onnx"
            export_onnx(small_checkpoint, path, None, options)
            made[options] = path
        return made[options]

    return export
