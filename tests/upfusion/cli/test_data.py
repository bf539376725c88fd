"""``upfusion data check``: exit codes and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from upfusion.cli.data import FAULTY, app
from upfusion.runtime.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    folder = tmp_path / "gfp_pc"
    for side in "ab":
        (folder / side).mkdir(parents=True)
        cv2.imwrite(str(folder / side / "1.png"), random.integers(0, 256, (16, 16), dtype=np.uint8))
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, ["check", *map(str, arguments)], catch_exceptions=False)


def test_a_good_set(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert "✓ GFP-PC" in result.stderr
    assert "1 pairs (no split), GFP + phase contrast" in result.stderr
    assert result.stdout == ""


def test_a_faulty_set(folder: Path) -> None:
    (folder / "b" / "1.png").rename(folder / "b" / "2.png")
    result = run(folder, "--json")
    assert result.exit_code == FAULTY
    assert "✗ GFP-PC" in result.stderr
    assert "has no partner named 1" in result.stderr
    (found,) = json.loads(result.stdout)["sets"]
    assert found["good"] is False
    assert len([finding for finding in found["findings"] if finding["severity"] == "error"]) == 3


def test_no_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folders of image pairs"):
        run(tmp_path)
