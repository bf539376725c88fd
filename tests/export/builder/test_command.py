"""``upfusion build`` as it is typed: what is printed, what is left, and a real Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from upfusion.cli.build import build
from upfusion.runtime.errors import InputError
from upfusion.runtime.manifest import read_manifest

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

Exported = Callable[..., Path]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(build)
    return app


def test_builds_and_says_what_it_took_and_what_comes_next(app: typer.Typer, exported: Exported, tmp_path: Path) -> None:
    engine = tmp_path / "small.engine"
    result = CliRunner().invoke(
        app, [str(exported()), "-o", str(engine), "--builder", "tensorrt-rtx", "--target", "sm86,sm89", "--json"]
    )
    assert result.exit_code == 0, result.output
    text = " ".join(result.stderr.split())
    assert "tensorrt-rtx (as asked)" in text
    assert "for sm86, sm89, fp32" in text
    assert "executed on a GPU: no" in text
    assert "upfusion accept" in text
    (printed,) = json.loads(result.stdout)["engines"]
    assert printed["sha256"] == read_manifest(engine).sha256


def test_one_engine_for_each_target(app: typer.Typer, exported: Exported, tmp_path: Path) -> None:
    pattern = str(tmp_path / "small.{target}.engine")
    result = CliRunner().invoke(
        app, [str(exported("fp16")), "-o", pattern, "--builder", "tensorrt-rtx", "--target", "sm86,sm120"]
    )
    assert result.exit_code == 0, result.output
    for target in ("sm86", "sm120"):
        record = read_manifest(tmp_path / f"small.{target}.engine").build
        assert record is not None
        assert record.targets == (target,)


def test_an_error_travels_as_one_of_our_family(app: typer.Typer, exported: Exported, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, [str(exported()), "-o", str(tmp_path / "x.engine"), "--builder", "tensorrt-rtx", "--target", "ada"]
    )
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "x.engine").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process group")
def test_ctrl_c_ends_the_builder_and_leaves_nothing(exported: Exported, tmp_path: Path) -> None:
    graph = exported()
    before = sorted(tmp_path.iterdir())
    code = "import typer; from upfusion.cli.build import build; app = typer.Typer(); app.command()(build); app()"
    command = [sys.executable, "-c", code, str(graph), "-o", str(tmp_path / "small.engine"), "--builder=tensorrt-rtx"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "tensorrt-rtx" in line
    time.sleep(0.2)  # the worker needs longer than this to load the library
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    assert "was not written" in rest
    assert sorted(tmp_path.iterdir()) == before
