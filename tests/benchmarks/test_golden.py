"""The golden networks as the benchmarks take them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.golden import golden_checkpoint, golden_network


def test_a_checkpoint_carries_the_recipes_network_and_text(golden: Path, tmp_path: Path) -> None:
    checkpoint = golden_checkpoint("reduced", tmp_path)
    case = np.load(golden / "reduced_64x64.npz")
    assert checkpoint.text is not None
    np.testing.assert_array_equal(checkpoint.text.features, case["text"])
    with torch.no_grad():
        output = checkpoint.model(*(torch.from_numpy(case[name]) for name in ("vis", "ir", "text")))
    # FACTS.md section 7: other libraries and thread counts move float32 outputs by up to 6e-6 of the largest.
    np.testing.assert_allclose(output, case["output"], rtol=0, atol=2e-5 * max(1.0, np.abs(case["output"]).max()))


def test_every_case_of_a_recipe_has_the_same_text(golden: Path) -> None:
    """The text is read from one of the cases: that is right only while they agree."""
    for recipe in json.loads((golden / "recipe.json").read_text()):
        texts = [np.load(path)["text"] for path in golden.glob(f"{recipe}_[0-9]*.npz")]
        assert len(texts) > 1
        assert all(np.array_equal(text, texts[0]) for text in texts)


def test_without_the_reference_data_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="reference data is not beside this checkout"):
        golden_network("full", tmp_path)
