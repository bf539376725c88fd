"""``upfusion fuse`` as a user meets it: exit code, sentences, files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from upfusion.cli import artifacts
from upfusion.cli.fuse import fuse
from upfusion.runtime.errors import InputError, UPFusionError
from upfusion.runtime.images import read_image, write_image


@pytest.fixture
def run(tmp_path: Path, make: Any, noise: Any) -> Any:
    """Run ``fuse`` in a folder with an artifact and two folders of four pairs."""
    make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    for folder, channels in (("a", (3,)), ("b", ())):
        (tmp_path / folder).mkdir()
        for number in range(4):
            write_image(tmp_path / folder / f"{number}.png", noise((17, 24, *channels), seed=number))
    app = typer.Typer()
    app.command()(fuse)

    def run_fuse(first: str, second: str, *options: str, output: str = "out") -> Any:
        arguments = [str(tmp_path / first), str(tmp_path / second), "-m", str(tmp_path / "tiny.onnx")]
        return CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / output), *options])

    return run_fuse


def test_folder(tmp_path: Path, run: Any) -> None:
    result = run("a", "b", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert sorted(record["written"]) == ["0", "1", "2", "3"]
    assert record["failed"] == {}
    assert record["device"] == "CPU"
    assert "4 of 4 pairs on CPU" in result.stderr
    assert f"wrote {tmp_path / 'out'}" in result.stderr.replace("\n", "")
    assert read_image(tmp_path / "out" / "2.png").shape == (17, 24, 3)


def test_contexts_share_the_cores_and_change_nothing(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("a", "b").exit_code == 0
    taken: list[Any] = []
    real = artifacts.load

    def load(path: Path, **settings: Any) -> Any:
        taken.append((settings["contexts"], settings["options"]))
        return real(path, **settings)

    monkeypatch.setattr(artifacts, "load", load)
    monkeypatch.setattr(artifacts.os, "cpu_count", lambda: 8)
    result = run("a", "b", "--contexts", "4", "--device", "cpu", output="again")
    assert result.exit_code == 0
    ((contexts, options),) = taken
    assert (contexts, options.threads) == (4, 2)
    for number in range(4):
        name = f"{number}.png"
        assert np.array_equal(read_image(tmp_path / "out" / name), read_image(tmp_path / "again" / name))


def test_one_pair_in_gray(tmp_path: Path, run: Any) -> None:
    result = run("a/1.png", "b/1.png", "--color", "gray", output="fused.bmp")
    assert result.exit_code == 0
    image = read_image(tmp_path / "fused.bmp")  # as the authors' script writes it
    assert image.shape == (17, 24, 3)
    assert (image == image[..., :1]).all()
    assert result.stdout == ""


def test_a_failing_pair_sets_the_exit_code(tmp_path: Path, run: Any) -> None:
    (tmp_path / "b" / "2.png").write_bytes(b"broken")
    result = run("a", "b", "--json")
    assert result.exit_code == 1
    assert "2.png: not an image" in result.stderr.replace("\n", "")
    assert "3 of 4 pairs" in result.stderr
    assert list(json.loads(result.stdout)["failed"]) == ["2"]


def test_many_failures_are_summed_up(tmp_path: Path, run: Any, noise: Any) -> None:
    for number in range(4, 16):
        for folder in ("a", "b"):
            write_image(tmp_path / folder / f"{number}.png", noise((600, 8)))
    result = run("a", "b")
    assert result.exit_code == 1
    assert result.stderr.count("error:") == 10
    assert result.stderr.count("hint:") == 1
    assert "and 2 more; --json lists all" in result.stderr


def test_errors(tmp_path: Path, run: Any) -> None:
    (tmp_path / "a" / "9.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    assert isinstance(run("a", "b").exception, InputError)
    result = run("a/0.png", "b/0.png", "--every", "4")
    assert "are for videos: images are ranked one by one" in str(result.exception)


def test_video(tmp_path: Path, run: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    for name in ("v.avi", "i.avi"):
        writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
        for number in range(3):
            writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
        writer.release()
    result = run("v.avi", "i.avi", "--json", output="fused.mp4")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["frames"] == 3
    assert "3 frames of 48x64 on CPU" in result.stderr
    for options, problem in (
        (("--every", "5"), "--every 5 needs a second artifact, one that takes decisions"),
        (("--between", "given.onnx"), "--between given.onnx is for the frames that are not ranked"),
        (("--every", "5", "--between", str(tmp_path / "none.onnx")), "none.onnx: no such file"),
        (("--every", "5", "--between", str(tmp_path / "tiny.onnx")), "tiny.onnx ranks (dynamic) and does not show"),
    ):
        result = run("v.avi", "i.avi", *options, output="again.mp4")
        assert isinstance(result.exception, UPFusionError)
        assert problem in str(result.exception)
        assert result.exception.hint
        assert not (tmp_path / "again.mp4").exists()
    assert run("v.avi", "i.avi", "--every", "1", output="again.mp4").exit_code == 0


def test_help_teaches(run: Any) -> None:
    app = typer.Typer()
    app.command()(fuse)
    text = " ".join(CliRunner(env={"COLUMNS": "120"}).invoke(app, ["--help"]).stdout.split())
    for words in ("Example: upfusion fuse vis/ ir/", "--color", "--every", "--between", "exit code"):
        assert words in text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for another process")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_a_playable_video(tmp_path: Path, run: Any, name: str) -> None:
    """A real signal to a real process, in the middle of a video that takes much longer."""
    number = getattr(signal, name)
    cv2 = pytest.importorskip("cv2")
    for video in ("v.avi", "i.avi"):
        writer = cv2.VideoWriter(str(tmp_path / video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
        for frame in range(4_000):
            writer.write(np.full((48, 64, 3), frame % 200, np.uint8))
        writer.release()
    arguments = ["fuse", "v.avi", "i.avi", "-m", "tiny.onnx", "-o", "fused.avi", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "upfusion", *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # until frames reach the file
        if any(path.stat().st_size > 6_000 for path in tmp_path.glob(".partial*.avi")):
            break
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    record = json.loads(stdout)
    assert record["stopped"]
    assert "stopped before the end" in " ".join(stderr.decode().split())
    capture = cv2.VideoCapture(str(tmp_path / "fused.avi"))
    frames = 0
    while capture.grab():
        frames += 1
    assert 0 < frames == record["frames"] < 4_000
    assert not list(tmp_path.glob(".partial*"))
