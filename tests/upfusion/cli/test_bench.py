"""``upfusion bench`` as a user meets it, on a graph of a few nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from upfusion.cli.app import app
from upfusion.runtime.errors import InputError, MissingDependencyError
from upfusion.runtime.images import write_image

QUICK = ("--runs", "3", "--warm-up", "1", "--seconds", "0", "--threads", "1")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_json_and_files(graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run(graph, *QUICK, "--batch", "1,2", "--contexts", "1,2", "--json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == record
    (artifact,) = record["artifacts"]
    assert (artifact["name"], artifact["size"], artifact["device"]) == ("a.onnx", [48, 64], "CPU")
    assert artifact["latency"]["count"] == artifact["bare"]["count"] == 3
    assert artifact["latency"]["median"] > 0
    assert len(artifact["throughput"]) == 4
    assert "bare run" in (tmp_path / "out" / "bench.md").read_text()
    assert (tmp_path / "out" / "bench.png").stat().st_size > 10_000
    assert not list((tmp_path / "out").glob(".partial*"))


def test_real_pairs_and_a_table(graph: Path, tmp_path: Path) -> None:
    for folder, shape in (("vis", (40, 56, 3)), ("ir", (40, 56))):
        (tmp_path / folder).mkdir()
        for number in range(2):
            write_image(tmp_path / folder / f"{number}.png", np.full(shape, 90 * number, np.uint8))
    result = run(graph, *QUICK, "--data", tmp_path / "vis", tmp_path / "ir")
    assert result.exit_code == 0, result.output
    assert "40x56" in result.stdout
    assert "no GPU figures: nothing here runs on a GPU" in " ".join(result.stderr.split())
    scaled = run(graph, *QUICK, "--data", tmp_path / "vis", tmp_path / "ir", "--size", "24x32", "--json")
    assert json.loads(scaled.stdout)["artifacts"][0]["size"] == [24, 32]
    assert json.loads(scaled.stdout)["images"].startswith("2 pairs of ")


def test_refusals(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(run(graph, "--batch", "two").exception, InputError)
    assert "same name" in str(run(graph, graph, *QUICK).exception)
    assert "no such file" in str(run(graph, tmp_path / "none.onnx").exception)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(graph, *QUICK, "-o", tmp_path / "out")
    assert isinstance(result.exception, MissingDependencyError)
    assert not list((tmp_path / "out").iterdir())
    assert run(graph, *QUICK, "-o", tmp_path / "out", "--no-plot").exit_code == 0


def test_no_torch_for_a_graph(graph: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from upfusion.cli.app import app\n"
        f"r = CliRunner().invoke(app, ['bench', {str(graph)!r}, '--runs', '1', '--warm-up', '0', '--seconds', '0'])\n"
        "assert r.exit_code == 0, r.output\n"
        "print([m for m in ('torch', 'onnx', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
