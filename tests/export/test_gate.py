"""Build and accept in one step. The GPU's part, running the engine, is played; the builds are real."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from upfusion.cli.build import build
from upfusion.export import gate
from upfusion.export.builder import BuildOptions
from upfusion.export.gate import accepted_engine_from_onnx, require_gpu
from upfusion.export.onnx_export import ExportOptions
from upfusion.runtime.errors import DeviceError
from upfusion.runtime.manifest import Manifest, SizeRange, read_manifest

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

RTX = BuildOptions(builder="tensorrt-rtx", targets=("sm86",))
SIZES = SizeRange(minimum=(64, 64), optimum=(64, 64), maximum=(64, 64))
Exported = Callable[[ExportOptions], Path]


@pytest.fixture
def graph(exported: Exported) -> Path:
    """The small network with every part, as upfusion export writes it."""
    return exported(ExportOptions(precision="fp16", sizes=SIZES))


def judge_as(verdict: str) -> Callable[[Path], Manifest]:
    """Return what stands in for the comparison on a GPU: it finds the plan complete, and leaves a cache beside it."""

    def judge(plan: Path) -> Manifest:
        manifest = dataclasses.replace(read_manifest(plan), acceptance={"verdict": verdict})
        manifest.write(plan)
        plan.with_name(plan.name + ".cache").write_bytes(b"kernels")
        return manifest

    return judge


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_pass_puts_the_engine_under_its_name(graph: Path, tmp_path: Path) -> None:
    place, manifest = accepted_engine_from_onnx(graph, tmp_path / "a.engine", RTX, judge_as("accepted"))
    assert place == tmp_path / "a.engine"
    assert read_manifest(place) == manifest
    assert names(tmp_path) == ["a.engine", "a.engine.json"]


def test_a_rejected_engine_is_kept_under_another_name_with_its_report(graph: Path, tmp_path: Path) -> None:
    accepted_engine_from_onnx(graph, tmp_path / "a.engine", RTX, judge_as("accepted"))
    place, _ = accepted_engine_from_onnx(graph, tmp_path / "a.engine", RTX, judge_as("rejected"))
    assert place == tmp_path / "a.engine.rejected"
    assert read_manifest(place).acceptance == {"verdict": "rejected"}
    assert read_manifest(tmp_path / "a.engine").acceptance == {"verdict": "accepted"}, "the one from before stays"
    assert names(tmp_path) == ["a.engine", "a.engine.json", "a.engine.rejected", "a.engine.rejected.json"]


def test_no_engine_is_left_when_the_judging_fails(graph: Path, tmp_path: Path) -> None:
    def fail(plan: Path) -> Any:
        raise DeviceError("out of memory", "")

    with pytest.raises(DeviceError):
        accepted_engine_from_onnx(graph, tmp_path / "a.engine", RTX, fail)
    assert names(tmp_path) == []


def test_without_a_gpu_nothing_is_built(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "installed_gpus", lambda: [])
    with pytest.raises(DeviceError, match="no NVIDIA GPU here"):
        require_gpu()
    app = typer.Typer()
    app.command()(build)
    result = CliRunner().invoke(app, [str(graph), "-o", str(tmp_path / "a.engine"), "--accept", "vis", "ir"])
    assert isinstance(result.exception, DeviceError)
    assert names(tmp_path) == []
