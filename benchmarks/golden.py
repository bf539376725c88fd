"""The networks that the golden recipes of ../shared describe: known weights at any size of network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from upfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upfusion.model import FusionNetwork
from upfusion.text import TextFeatures

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"


def golden_network(recipe: str, folder: Path = GOLDEN) -> tuple[FusionNetwork, TextFeatures]:
    """Return a recipe's network and the text feature of its golden cases; ``folder`` holds ``recipe.json``."""
    if not (folder / "recipe.json").is_file():
        raise SystemExit(f"{folder} holds no golden recipes: the reference data is not beside this checkout")
    make_weights = _module_at(folder / "make_weights.py")
    adapter = _module_at(ROOT / "tests" / "golden" / "golden_adapter.py")
    settings = make_weights.load_recipe(folder / "recipe.json", recipe)
    config = json.loads((folder / settings["keys_file"]).read_text())["config"]
    text = np.load(folder / f"{recipe}_64x64.npz")["text"].astype(np.float32)
    return (
        adapter.network_of(make_weights.make_state_dict(settings), config),
        TextFeatures(features=text, prompt="golden", encoder=f"golden recipe {recipe}"),
    )


def golden_checkpoint(recipe: str, folder: Path) -> Checkpoint:
    """Write a recipe's network with its text feature as a checkpoint into ``folder``, and load it."""
    network, text = golden_network(recipe)
    path = folder / f"{recipe}.safetensors"
    save_checkpoint(network, path, text=text, provenance={"weights": f"golden recipe {recipe}"})
    return load_checkpoint(path)


def _module_at(path: Path) -> Any:
    """Import a script that lies outside any package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
