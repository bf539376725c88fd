"""``upfusion export``: what its options choose, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from upfusion.checkpoint import Checkpoint
from upfusion.cli.app import app
from upfusion.export.rewrites import DEFAULTS, LEAN, LEAN_WITHOUT, NAMES, chosen_rewrites
from upfusion.runtime.errors import InputError
from upfusion.runtime.manifest import read_manifest


def export(checkpoint: Checkpoint, path: Path, *options: str) -> Result:
    return CliRunner().invoke(
        app, ["export", str(checkpoint.path), "-o", str(path), "--size", "32x40", *options], catch_exceptions=False
    )


def test_the_options_choose_the_rewrites(small_checkpoint: Checkpoint, tmp_path: Path):
    path = tmp_path / "lean.onnx"
    result = export(
        small_checkpoint, path, "--target", "cpu", "--lean", "--without-rewrite", "pad_hidden",
        "--without-rewrite", "fold_reductions",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = read_manifest(path)
    assert manifest.target == "cpu"
    assert {"fold_layer_norm", "group_feed_forward"} <= set(manifest.rewrites)
    assert not {"pad_hidden", "fold_reductions"} & set(manifest.rewrites)
    assert f"{len(manifest.rewrites)} applied, for cpu" in re.sub(r"\s+", " ", result.stderr)


def test_sets_of_rewrites():
    assert chosen_rewrites("tensorrt") == DEFAULTS["tensorrt"]
    assert chosen_rewrites("cpu", without=["pad_hidden"]) == tuple(n for n in DEFAULTS["cpu"] if n != "pad_hidden")
    assert set(chosen_rewrites("tensorrt", lean=True)) == {*DEFAULTS["tensorrt"], *LEAN} - {*LEAN_WITHOUT}
    assert chosen_rewrites("tensorrt", plain=True) == ()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--without-rewrite", "fold_everything"), "no rewrite of the set for tensorrt is called fold_everything"),
        (
            ("--without-rewrite", "group_feed_forward"),
            "no rewrite of the set for tensorrt is called group_feed_forward",
        ),
        (("--plain", "--lean"), "--plain applies no rewrite"),
        (("--plain", "--without-rewrite", "pad_hidden"), "--plain applies no rewrite"),
    ],
)
def test_choices_that_make_no_set(small_checkpoint: Checkpoint, tmp_path: Path, options, problem):
    with pytest.raises(InputError, match=problem) as caught:
        export(small_checkpoint, tmp_path / "x.onnx", *options)
    if "is called" in problem:
        assert all(name in caught.value.hint for name in NAMES if name not in (*LEAN, "fold_layer_norm"))
    assert not list(tmp_path.iterdir())
