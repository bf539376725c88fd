"""``upfusion eval``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from upfusion.cli import artifacts
from upfusion.cli.eval import JOURNAL, evaluate_command
from upfusion.evaluation.paper import PAPER_METHOD, PAPER_VALUES
from upfusion.metrics import METRICS
from upfusion.runtime.errors import InputError

app = typer.Typer()
app.command()(evaluate_command)


class Fuser:
    """Stands for an artifact: the larger of luma and infrared."""

    device = "CPU"
    calls = 0

    def __call__(self, visible: np.ndarray, infrared: np.ndarray, color: str) -> np.ndarray:
        assert color == "gray"
        Fuser.calls += 1
        return np.maximum(visible[..., 0], infrared)

    def __enter__(self) -> Fuser:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    folder = tmp_path / "msrs"
    for side, shape in (("vis", (24, 32, 3)), ("ir", (24, 32))):
        (folder / side).mkdir(parents=True)
        for name in "ab":
            cv2.imwrite(str(folder / side / f"{name}.png"), random.integers(0, 256, shape, dtype=np.uint8))
    return folder


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fusion.onnx"
    path.write_bytes(b"weights")
    monkeypatch.setattr(artifacts, "open_fuser", lambda path, device, text: Fuser())
    Fuser.calls = 0
    return path


def run(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_table_with_the_paper_beside_it(data: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "msrs"
    command = ["--data", data, "-m", model, "-o", output, "--workers", 1, "--metrics", "SSIM,Qabf", "--plot", "none"]
    result = run(*command)
    assert result.exit_code == 0
    for text in ("MSRS, test, 2 pairs", "average", "guided filter", "fusion", PAPER_METHOD, "0.6859"):
        assert text in result.stdout
    assert {path.name for path in output.iterdir()} == {"pairs.csv", "table.md", "table.json", JOURNAL}
    table = json.loads((output / "table.json").read_text())["tables"][0]
    assert table["methods"]["fusion"]["kind"] == "artifact"
    assert table["methods"]["fusion"]["identity"].startswith("sha256:")
    assert table["paper"]["printed"]["Qabf"] == PAPER_VALUES["MSRS"][1]["Qabf"]
    assert Fuser.calls == 2
    assert run(*command).exit_code == 0
    assert Fuser.calls == 2  # everything was known
    model.write_bytes(b"other weights")
    assert run(*command).exit_code == 0
    assert Fuser.calls == 4


def test_json_and_plot(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = run("--data", data, "-o", tmp_path, "--workers", 1, "--metrics", "EN", "--limit", 1, "--json")
    table = json.loads(result.stdout)["tables"][0]
    assert table["pairs"] == ["a"]
    assert list(table["metrics"]) == ["EN"]
    assert (tmp_path / "bar.png").is_file()


def test_list_of_metrics() -> None:
    result = run("--metrics", "list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in METRICS)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "no dataset was given"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", ".", "--metrics", "LPIPS"], "no metric 'LPIPS'"),
    ],
)
def test_refusals(arguments: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        run(*arguments)


def test_nothing_to_measure(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        run("--data", data, "-o", tmp_path, "--no-baselines")


def test_the_same_artifact_twice(data: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two methods are named"):
        run("--data", data, "-o", tmp_path, "-m", model, "-m", model)
