"""The command line as a user meets it: help, exit codes, and the sentences of the short verbs."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from upfusion import __version__
from upfusion.cli.app import GROUPS, VERBS, app
from upfusion.cli.console import print_json
from upfusion.cli.sizes import parse_size, parse_sizes
from upfusion.runtime.errors import InputError, UPFusionError
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import SizeRange

README = Path(__file__).resolve().parents[3] / "README.md"
runner = CliRunner()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    command = [sys.executable, "-m", "upfusion", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("verb", [*VERBS, *GROUPS])
def test_every_verb_teaches(verb: str):
    result = runner.invoke(app, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output) > 300


def test_help_and_version_load_no_heavy_library():
    code = (
        "import sys; from typer.testing import CliRunner; from upfusion.cli.app import app;"
        "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'cv2', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert runner.invoke(app, ["--version"]).output.strip() == f"upfusion {__version__}"


def test_an_error_is_a_sentence_a_remedy_and_exit_code_2(tmp_path: Path):
    result = run("convert", tmp_path / "absent.pth", "-o", tmp_path / "x.safetensors")
    assert result.returncode == 2
    assert "absent.pth: no such checkpoint" in result.stderr
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_broken_image_is_one_error_and_no_line_of_a_library(graph: Path, tmp_path: Path):
    image = tmp_path / "cut.png"
    write_image(image, np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8))
    image.write_bytes(image.read_bytes()[:1000])
    result = run("bench", graph, "--data", image, image)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], result.stderr


def test_export_refuses_contradicting_sizes(tmp_path: Path):
    with pytest.raises(UPFusionError, match="exclude each other"):
        runner.invoke(
            app,
            ["export", "x.pth", "-o", str(tmp_path / "x.onnx"), "--size", "64x64", "--dynamic"],
            catch_exceptions=False,
        )


def test_sizes():
    assert parse_size("480x640") == (480, 640)
    assert parse_sizes("480x640").fixed
    assert parse_sizes("64x64:480x640:1024x1280") == SizeRange(
        minimum=(64, 64), optimum=(480, 640), maximum=(1024, 1280)
    )
    for text in ("480", "480x", "axb", "1x2:3x4", ""):
        with pytest.raises(InputError):
            parse_sizes(text)


def test_readme_names_real_verbs_and_options():
    commands = re.findall(r"upfusion ([a-z]+)((?: [^\n`#&|]*)?)", README.read_text(encoding="utf-8"))
    seen = {verb for verb, _ in commands if verb in VERBS or verb in GROUPS}
    assert {"demo", "text", "convert", "export", "build", "verify", "fuse", "doctor"} <= seen
    for verb, rest in commands:
        if verb not in VERBS:
            continue
        help_text = np.char.replace(runner.invoke(app, [verb, "--help"]).output, "\n", " ").item()
        for option in re.findall(r"--[a-z0-9-]+", rest):
            assert option in help_text, (verb, option)


def test_json_is_json_whatever_was_measured(capsys: pytest.CaptureFixture[str]):
    print_json({"equal": math.inf, "rows": [{"flat": math.nan}, (1.5, -math.inf)], "name": "ä"})
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {
        "equal": None,
        "rows": [{"flat": None}, [1.5, None]],
        "name": "ä",
    }


def texts_of(path: Path) -> list[str]:
    """Every string of a source file, the values in it left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_commands_in_hints_and_docstrings_have_their_options():
    """What an error tells the user to type is understood."""
    root = Path(__file__).resolve().parents[3]
    command = re.compile(r"\bupfusion ([a-z]+)((?: [^\s`;,()&]+)*)")
    commands = {
        found
        for part in ("upfusion", "runtime", "export", "calibration")
        for path in (root / part).rglob("*.py")
        for text in texts_of(path)
        for found in command.findall(text)
    }
    wide = {"COLUMNS": "200"}
    helps = {verb: runner.invoke(app, [verb, "--help"], env=wide).output for verb in VERBS}
    named = [
        (verb, option) for verb, rest in commands if verb in VERBS for option in re.findall(r" (--[a-z0-9-]+)", rest)
    ]
    assert len(named) > 30
    wrong = sorted({f"upfusion {verb} {option}" for verb, option in named if option not in helps[verb]})
    assert not wrong
