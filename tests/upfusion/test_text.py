"""Text features: files, the missing CLIP weights, and the encoder on weights of the right shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from upfusion.runtime.errors import InputError, MissingDependencyError
from upfusion.text import CLIP_MODEL, DEFAULT_PROMPT, TextFeatures, encode_text, load_text, stand_in_text

TOKENS = (
    "49406 518 2867 12844 6470 2758 539 518 2208 3562 8020 633 2731 617 2476 1480 267 2416 7250 48953 3204 269 4353 "
    "525 32315 3797 2353 267 29119 1550 14171 267 537 1458 14530 682 14112 531 7522 518 3562 269 49407"
)
"""The authors' prompt in OpenAI's vocabulary (reference facts, section 5)."""


def test_file_round_trip(tmp_path: Path):
    text = stand_in_text()
    text.save(tmp_path / "text.npz")
    loaded = load_text(tmp_path / "text.npz")
    np.testing.assert_array_equal(loaded.features, text.features)
    assert (loaded.prompt, loaded.encoder) == (text.prompt, text.encoder)
    with np.load(tmp_path / "text.npz") as file:
        assert file["features"].shape == (1, 512)
        assert file["features"].dtype == np.float32


def test_wrong_files(tmp_path: Path):
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.savez(tmp_path / "short.npz", features=np.ones((1, 8)), prompt="p", encoder="e")
    np.savez(tmp_path / "nan.npz", features=np.full((1, 512), np.nan), prompt="p", encoder="e")
    (tmp_path / "noise.npz").write_bytes(b"PK not really")
    for name in ("other.npz", "short.npz", "nan.npz", "noise.npz", "absent.npz"):
        with pytest.raises(InputError) as caught:
            load_text(tmp_path / name)
        assert "upfusion text" in caught.value.hint


def test_stand_in_has_the_norm_of_clip():
    norm = np.linalg.norm(stand_in_text().features)
    assert 7 < norm < 13
    assert "not an encoding" in stand_in_text().encoder


def test_missing_weights_name_the_download(tmp_path: Path):
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    with pytest.raises(MissingDependencyError) as caught:
        encode_text("a prompt", tmp_path / "ViT-B-32.pt")
    assert "ViT-B-32.pt" in caught.value.problem
    assert "download" in caught.value.hint


def test_encoder_on_weights_of_the_right_shape(tmp_path: Path):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model(CLIP_MODEL, pretrained=None)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    text = encode_text(DEFAULT_PROMPT, tmp_path / "weights.pt")
    assert isinstance(text, TextFeatures)
    with torch.no_grad():
        want = model.eval().encode_text(open_clip.get_tokenizer(CLIP_MODEL)([DEFAULT_PROMPT]))
    np.testing.assert_allclose(text.features, want.numpy(), atol=1e-6)
    assert abs(np.linalg.norm(text.features) - 1) > 1e-3  # not L2-normalised


def test_prompt_has_the_authors_tokens():
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    tokens = open_clip.get_tokenizer(CLIP_MODEL)([DEFAULT_PROMPT])[0].tolist()
    assert [token for token in tokens if token] == [int(token) for token in TOKENS.split()]
