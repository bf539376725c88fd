"""Imports go one way. Read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOMES = {"runtime": "upfusion.runtime", "export": "upfusion.export", "calibration": "upfusion.calibration"}
LIBRARIES_ONLY = ("upfusion.model", "upfusion.config")


def module_of(path: Path) -> str:
    """The name that a file is imported by."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in HOMES:
        parts[0:1] = HOMES[parts[0]].split(".")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module of ours that a file imports, anywhere in it."""
    found: set[str] = set()
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == "upfusion"}


def sources() -> list[Path]:
    """All Python files of the package."""
    return sorted(path for folder in ("upfusion", *HOMES) for path in (ROOT / folder).rglob("*.py"))


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name lies in one of the packages."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def forbidden(module: str) -> tuple[str, ...]:
    """Packages of ours that a module must not import."""
    if within(module, "upfusion.cli", "upfusion.__main__"):
        return ()
    if within(module, "upfusion.runtime"):
        return tuple(name for name in others(module, "upfusion.runtime"))
    if within(module, *LIBRARIES_ONLY):
        return others(module, *LIBRARIES_ONLY)
    steps = ("upfusion.export", "upfusion.calibration", "upfusion.training", "upfusion.train")
    mine = tuple(step for step in steps if within(module, step))
    return ("upfusion.cli", *(step for step in steps if mine and step not in mine))


def others(module: str, *allowed: str) -> tuple[str, ...]:
    """Every module of ours outside the allowed packages."""
    names = {module_of(path) for path in sources()}
    return tuple(name for name in names if name != "upfusion" and not within(name, *allowed))


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_go_one_way(path: Path) -> None:
    module = module_of(path)
    banned = forbidden(module)
    wrong = sorted(name for name in imports_of(path) if within(name, *banned))
    assert not wrong, f"{module} imports {', '.join(wrong)}"


def test_the_reader_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime" / "backends").mkdir(parents=True)
    source = tmp_path / "runtime" / "backends" / "x.py"
    source.write_text(
        "from upfusion import cli\ndef f():\n    import upfusion.model.layers\n    from ..errors import E\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert imports_of(source) >= {
        "upfusion.cli",
        "upfusion.model.layers",
        "upfusion.runtime.errors",
        "upfusion.runtime.errors.E",
    }


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_free() -> None:
    loaded = fresh("import sys, upfusion; print(*sorted(sys.modules))").split()
    assert not {"numpy", "torch", "onnx", "onnxruntime", "cv2", "typer", "rich"} & set(loaded)


def test_the_runtime_is_thin() -> None:
    """Neither torch nor onnx, and under half a second beyond numpy and onnxruntime.

    The processor's time, since the clock on the wall also counts what else the machine does.
    """
    code = """
import sys, time
import numpy, onnxruntime
start = time.process_time()
import upfusion.runtime
from upfusion.runtime import Fuser, find_pairs, load
import upfusion.runtime.backends.onnxruntime
print(time.process_time() - start)
print(*sorted(sys.modules))
"""
    seconds, modules = fresh(code).splitlines()
    loaded = set(modules.split())
    assert not {"torch", "onnx", "onnxscript", "timm", "scipy", "skimage", "typer", "rich", "tensorrt"} & loaded
    assert float(seconds) < 0.5


def test_public_names_exist() -> None:
    import upfusion.runtime

    for name in upfusion.runtime.__all__:
        assert getattr(upfusion.runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = upfusion.runtime.nothing
