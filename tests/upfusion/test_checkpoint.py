"""Checkpoints: the authors' format and ours, and what the user sees when a file is wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from upfusion.checkpoint import (
    authors_key,
    load_checkpoint,
    load_model,
    save_checkpoint,
    to_authors,
)
from upfusion.config import PRESETS, ModelConfig, preset_name
from upfusion.model import FusionNetwork
from upfusion.runtime.errors import CheckpointError, InputError
from upfusion.text import stand_in_text

SMALL = ModelConfig(
    dim=16,
    num_blocks=(1, 2, 1, 1),
    num_refinement_blocks=1,
    ffn_expansion=2.66,
    text_hidden=32,
    convnext_depths=(1, 1, 2, 1),
    convnext_dims=(8, 16, 24, 32),
)


@pytest.fixture(scope="module")
def network() -> FusionNetwork:
    torch.manual_seed(1)
    return FusionNetwork(SMALL).eval()


@pytest.fixture
def authors_file(network: FusionNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "authors.pth"
    torch.save(to_authors(network), path)
    return path


def assert_same_tensors(first: FusionNetwork, second: FusionNetwork) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_names_are_the_authors_names(golden: Path):
    record = json.loads((golden / "checkpoint_keys.json").read_text())
    used = {entry["key"]: entry["shape"] for entry in record["keys"] if entry["used_in_forward"]}
    with torch.device("meta"):
        state = FusionNetwork(PRESETS["base"]).state_dict()
    assert {authors_key(name) for name in state} == used.keys()
    assert all(np.prod(used[authors_key(name)]) == value.numel() for name, value in state.items())


def test_authors_format_round_trip(network: FusionNetwork, authors_file: Path):
    loaded = load_checkpoint(authors_file)
    assert loaded.model.config == SMALL
    assert loaded.text is None
    assert_same_tensors(network, loaded.model)


def test_our_format_keeps_text_and_provenance(network: FusionNetwork, tmp_path: Path):
    path = tmp_path / "ours.safetensors"
    save_checkpoint(network, path, text=stand_in_text(4), provenance={"made": "here"})
    loaded = load_checkpoint(path)
    assert_same_tensors(network, loaded.model)
    assert loaded.provenance == {"made": "here"}
    assert loaded.text is not None
    np.testing.assert_array_equal(loaded.text.features, stand_in_text(4).features)
    assert "stand-in" in loaded.text.encoder
    assert not loaded.model.training


def test_unused_tensors_are_named(network: FusionNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    content = to_authors(network)
    content["AWF"]["module.latent_gt.0.norm1.body.weight"] = torch.ones(3)
    torch.save(content, tmp_path / "unused.pth")
    with caplog.at_level(logging.INFO, logger="upfusion"):
        assert_same_tensors(network, load_model(tmp_path / "unused.pth"))
    assert "latent_gt" in caplog.text


def spoil(kind: str, state: dict[str, torch.Tensor]) -> None:
    name = "module.refinement.0.attn.qkv.weight"
    if kind == "missing":
        del state[name]
    elif kind == "foreign":
        state["module.head.weight"] = torch.ones(2)
    elif kind == "shape":
        state[name] = state[name][1:]
    else:
        state[name] = torch.full_like(state[name], torch.nan)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "missing: refinement.0.attn.qkv.weight"),
        ("foreign", "foreign: head.weight"),
        ("shape", "shape: refinement.0.attn.qkv.weight is (95, 32, 1, 1)"),
        ("not finite", "not finite: refinement.0.attn.qkv.weight"),
    ],
)
def test_wrong_tensors_are_listed(network: FusionNetwork, tmp_path: Path, kind: str, said: str):
    content = to_authors(network)
    spoil(kind, content["AWF"])
    torch.save(content, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "wrong.pth")
    assert said in caught.value.problem
    assert "wrong.pth" in caught.value.problem


def test_files_that_are_no_checkpoint(network: FusionNetwork, authors_file: Path, tmp_path: Path):
    whole = authors_file.read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    save_file({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    save_checkpoint(network, tmp_path / "whole.safetensors", text=None, provenance={})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(whole[:-100])
    for name in (
        "truncated.pth",
        "noise.pth",
        "empty.pth",
        "other.pth",
        "foreign.safetensors",
        "truncated.safetensors",
        "absent.pth",
    ):
        with pytest.raises(CheckpointError) as caught:
            load_model(tmp_path / name)
        assert name in caught.value.problem
        assert caught.value.hint


def test_a_disk_without_room(network: FusionNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """safetensors has an error of its own for what the system says."""
    path = tmp_path / "x.safetensors"
    path.write_text("earlier")

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("upfusion.checkpoint.save_file", full)
    with pytest.raises(InputError, match=r"cannot write .*No space left") as caught:
        save_checkpoint(network, path, text=None, provenance={})
    assert "free some space" in caught.value.hint
    assert path.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_pickled_code_does_not_run(tmp_path: Path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"AWF": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "harmful.pth")
    assert not (tmp_path / "ran").exists()


def test_presets_have_names():
    assert [preset_name(config) for config in PRESETS.values()] == list(PRESETS)
    assert preset_name(SMALL) == "custom"
    with pytest.raises(ValueError, match="3 heads"):
        ModelConfig(dim=16, heads=(3, 2, 4, 8))
