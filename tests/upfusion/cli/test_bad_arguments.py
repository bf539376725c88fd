"""Whatever is wrong with the arguments of a verb: one sentence, one remedy, exit code 2, and no file."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from upfusion.cli.app import GROUPS, VERBS, app
from upfusion.runtime.errors import UPFusionError
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import Manifest, manifest_path
from upfusion.weights import TINY

PAIR = "vis/a.png ir/a.png"
FOLDERS = "vis ir"

CASES = {
    # Outputs that cannot be written are found before the work.
    "demo -o file": "file is a file",
    "demo -o file/sub": "file is a file",
    f"fuse {PAIR} -m ok.onnx -o none/x.png": "No such file",
    f"fuse {PAIR} -m ok.onnx -o file": "file is a file",
    f"fuse {PAIR} -m ok.onnx -o x.tga": "cannot write .tga",
    f"fuse {FOLDERS} -m ok.onnx -o file": "file is a file",
    f"fuse {FOLDERS} -m ok.onnx -o file/sub": "file is a file",
    "text word -o folder.npz": "it is a folder",
    "text word -o x.txt": "ends in .npz",
    "convert ok.safetensors -o folder.safetensors": "it is a folder",
    "convert ok.safetensors -o none/x.safetensors": "No such file",
    "convert ok.safetensors -o x.png": "ends in .safetensors",
    f"calibrate ok.safetensors --data {FOLDERS} -o folder.json": "it is a folder",
    f"calibrate ok.safetensors --data {FOLDERS} -o none/x.json": "No such file",
    "export ok.safetensors -o folder.onnx": "it is a folder",
    "export ok.safetensors -o none/x.onnx": "No such file",
    "export ok.safetensors -o x.engine": "ends in .onnx",
    "build ok.onnx -o folder.engine": "it is a folder",
    "build ok.onnx -o none/x.engine": "No such file",
    "build ok.onnx -o x.onnx": "ends in .engine",
    "bench ok.onnx -o file": "file is a file",
    "eval --data set -o file": "file is a file",
    "train --data set --stand-in-text -o file": "file is a file",
    "train --data set --stand-in-text -o file/sub": "file is a file",
    # Images.
    "fuse empty empty -m ok.onnx -o x": "holds no images",
    "fuse zero.png ir/a.png -m ok.onnx -o x.png": "zero.png: empty file",
    "fuse cut.png ir/a.png -m ok.onnx -o x.png": "truncated",
    "fuse vis/a.png wide.png -m ok.onnx -o x.png": "has 16x24 pixels (height x width), wide.png has 16x32",
    "fuse vis/a.png ir -m ok.onnx -o x.png": "vis/a.png is a file and ir is a folder",
    "calibrate ok.safetensors --data empty empty -o x.json": "holds no images",
    "calibrate ok.safetensors --data zero.png ir/a.png -o x.json": "empty file",
    "calibrate ok.safetensors --data vis/a.png wide.png -o x.json": "has 16x24 pixels",
    "verify ok.onnx ok.onnx --data zero.png ir/a.png": "empty file",
    "verify ok.onnx ok.onnx --data vis/a.png wide.png": "has 16x24 pixels",
    "verify ok.onnx ok.onnx --data empty empty": "holds no images",
    "accept ok.onnx --data empty empty": "holds no images",
    "bench ok.onnx --data zero.png ir/a.png": "empty file",
    "bench ok.onnx --data vis/a.png wide.png": "has 16x24 pixels",
    "eval --data empty": "no folders of image pairs",
    "data check empty": "no folders of image pairs",
    # Artifacts.
    f"fuse {PAIR} -m zero.onnx -o x.png": "truncated or not an ONNX file",
    f"fuse {PAIR} -m cut.onnx -o x.png": "not the file its manifest describes",
    f"fuse {PAIR} -m folder.onnx -o x.png": "no such file",
    f"fuse {PAIR} -m foreign.onnx -o x.png": "manifest schema None",
    f"fuse {PAIR} -m binary.onnx -o x.png": "is not text",
    f"fuse {PAIR} -m cut.engine -o x.png": "not the file its manifest describes",
    f"fuse {PAIR} -m bare.engine -o x.png": "bare.engine.json is missing",
    f"fuse {PAIR} -m zero.safetensors -o x.png": "zero.safetensors is empty",
    f"fuse {PAIR} -m cut.safetensors -o x.png": "not a complete safetensors file",
    f"fuse {PAIR} -m zero.png -o x.png": "neither an ONNX file nor an engine",
    "convert zero.safetensors -o x.safetensors": "is empty",
    "convert ok.onnx -o x.safetensors": "is no checkpoint",
    "export cut.safetensors -o x.onnx": "not a complete safetensors file",
    "inspect none.onnx": "no such file",
    "inspect folder.onnx": "no such file",
    "inspect ok.safetensors": "truncated or not an ONNX file",
    "build binary.onnx -o x.engine": "is not text",
    "build cut.onnx -o x.engine": "not the file its manifest describes",
    f"verify ok.onnx zero.safetensors --data {PAIR}": "is empty",
    f"verify shorter.onnx ok.onnx --layers --data {PAIR}": "truncated or not an ONNX file",
    f"accept binary.onnx --data {PAIR}": "is not text",
    "bench binary.onnx": "is not text",
    "bench ok.onnx none.onnx": "no such file",
    "eval --data set -m zero.safetensors -o x": "is empty",
    # Options.
    f"fuse {PAIR} -m ok.safetensors --text file -o x.png": "not a text feature",
    f"fuse {PAIR} -m ok.safetensors --text none.npz -o x.png": "no such text feature",
    f"fuse {PAIR} -m ok.safetensors --device tensorrt -o x.png": "does not run on 'tensorrt'",
    f"fuse {PAIR} -m ok.safetensors --device cuda:99 -o x.png": "cuda:99 was asked for",
    f"fuse {PAIR} -m ok.onnx --device gpu -o x.png": "unknown device 'gpu'",
    f"fuse {PAIR} -m ok.onnx --color blue -o x.png": "'blue' is not one of",
    f"calibrate ok.safetensors --data {FOLDERS} --size 0x0 -o x.json": "at least 8x8 pixels",
    f"calibrate ok.safetensors --data {FOLDERS} --limit 0 -o x.json": "--limit",
    "export ok.safetensors -o x.onnx --calibration file --precision fp16": "is not a calibration",
    "build ok.onnx -o x.engine --workspace nan": "not a number above 0",
    f"verify ok.onnx ok.onnx --data {PAIR} --psnr nan": "nan is not a number",
    f"verify ok.onnx ok.onnx --data {PAIR} --limit -1": "--limit",
    f"accept ok.onnx --data {PAIR} --psnr nan": "nan is not a number",
    "bench ok.onnx --size 4x4": "at least 8x8 pixels",
    "eval --data set --metrics , -o x": "names none",
    "train --data none --stand-in-text -o x": "no such folder",
    "train --data set --stand-in-text -o x --hold-out 9": "cannot be held out",
    "train --data set -o x --text none.npz": "no such text feature",
    "train --data set --stand-in-text -o x --learning-rate -1": "not a number above 0",
    "train --data set --stand-in-text -o x --cache-gb nan": "--cache-gb",
}


@pytest.fixture
def folder(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a good graph, checkpoint and set of pairs, and everything that can be wrong with them."""
    here = tmp_path / "here"
    here.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    for place in (here, here / "set"):
        for side, image in (("vis", noise), ("ir", noise[..., 0])):
            (place / side).mkdir(parents=True)
            write_image(place / side / "a.png", image)
    write_image(here / "wide.png", np.zeros((16, 32), np.uint8))
    (here / "empty").mkdir()
    (here / "file").write_text("text")
    (here / "zero.png").touch()
    (here / "cut.png").write_bytes((here / "vis" / "a.png").read_bytes()[:200])
    (here / "ok.safetensors").symlink_to(TINY)
    with open(TINY, "rb") as whole:
        (here / "cut.safetensors").write_bytes(whole.read(5000))
    data, manifest = graph.read_bytes(), manifest_path(graph).read_text()
    for name, content, said in (
        ("ok.onnx", data, manifest),
        ("cut.onnx", data[:-20], manifest),
        ("cut.engine", data[:-20], manifest),
        ("foreign.onnx", data, '{"hello": 1}'),
    ):
        (here / name).write_bytes(content)
        (here / f"{name}.json").write_text(said)
    (here / "binary.onnx").write_bytes(data)
    (here / "binary.onnx.json").write_bytes(b"\xff\xfe\x00")
    (here / "bare.engine").write_bytes(data)
    (here / "shorter.onnx").write_bytes(data[:-20])
    Manifest.from_json(manifest, where="").write(here / "shorter.onnx")
    for kind in ("onnx", "safetensors"):
        (here / f"zero.{kind}").touch()
    for kind in ("onnx", "engine", "npz", "json", "safetensors"):
        (here / f"folder.{kind}").mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize("command", CASES)
def test_one_sentence_one_remedy_code_2_and_no_file(folder: Path, command: str) -> None:
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(app, shlex.split(command), env={"COLUMNS": "300"})
    error = result.exception
    if isinstance(error, UPFusionError):  # which the entry point prints, with exit code 2: test_app.py
        said, remedy, code = error.problem, error.hint, 2
    else:
        said, code = result.output, result.exit_code
        remedy = "hint:" in said or "Try 'upfusion" in said
    assert CASES[command] in said, repr(error)
    assert remedy
    assert code == 2
    assert sorted(folder.rglob("*")) == before


def test_no_verb_is_left_out() -> None:
    assert {command.split()[0] for command in CASES} == {*VERBS, *GROUPS} - {"doctor"}, "doctor takes no arguments"
