"""Verbs on an install that lacks what they need: one sentence with the extra, no traceback, no file."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from upfusion.cli.missing import EXTRAS, missing_package
from upfusion.doctor import requirements_by_extra
from upfusion.runtime.images import write_image
from upfusion.weights import TINY

WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.argv = ["upfusion", *sys.argv[2:]]
from upfusion.cli.app import main
main()
"""


@pytest.mark.parametrize(
    ("command", "module", "extras"),
    [
        ("demo -o out", "skimage", "export,metrics"),
        ("convert {tiny} -o x.safetensors", "torch", "export"),
        ("calibrate {tiny} --data a.png b.png -o x.json", "torch", "export"),
        ("export {tiny} -o x.onnx", "torch", "export"),
        ("train --data set --stand-in-text -o out", "torch", "train"),
        ("inspect {graph}", "onnx", "export"),
        ("verify {graph} {graph} --data a.png b.png", "skimage", "metrics"),
    ],
)
def test_the_extra_is_named(graph: Path, tmp_path: Path, command: str, module: str, extras: str) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name, np.zeros((48, 64), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    arguments = command.format(tiny=TINY, graph=graph).split()
    run = [sys.executable, "-c", WITHOUT, ",".join(EXTRAS), *arguments]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert f"upfusion {arguments[0]} needs the package {module}" in result.stderr
    assert f"pip install 'upfusion[{extras}]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_extras_bring_what_is_said() -> None:
    asked = {extra: {one.name for one in found} for extra, found in requirements_by_extra().items()}
    brought_by_others = {"onnx_ir": "onnxscript"}
    for module, extras in EXTRAS.items():
        homes = metadata.packages_distributions().get(brought_by_others.get(module, module))
        if homes is None:
            pytest.skip(f"{module} is not installed here")
        for extra in extras:
            assert set(homes) & asked[extra], (module, extra)


def test_a_bug_stays_a_bug() -> None:
    assert missing_package(ModuleNotFoundError("no module", name="upfusion.nothing"), "fuse") is None
    assert missing_package(ImportError("cannot import name"), "fuse") is None
