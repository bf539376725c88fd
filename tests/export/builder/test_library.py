"""Looking at the libraries without loading them here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from upfusion.export.builder import library
from upfusion.export.builder.library import capabilities_of
from upfusion.export.builder.process import describe
from upfusion.runtime.errors import MissingDependencyError


def test_rtx_describes_itself() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    version, targets = describe("tensorrt-rtx")
    assert version[0].isdigit()
    assert {"sm86", "sm89", "sm120"} <= set(targets)
    assert "sm90" not in targets


def test_a_module_without_targets_builds_for_the_gpu_here_only() -> None:
    """TensorRT as it is, and one that is too old to stream the plan."""
    streaming = SimpleNamespace(Builder=SimpleNamespace(build_serialized_network_to_stream=None))
    assert not capabilities_of(streaming).ahead_of_time
    assert capabilities_of(streaming).streams_plan
    assert not capabilities_of(SimpleNamespace(Builder=SimpleNamespace())).streams_plan


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is not installed"),
        ("raise OSError('libnvinfer.so.11: cannot open shared object file')", "libnvinfer.so.11: cannot open"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_library_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, problem: str
) -> None:
    """A package of that name in the path, as broken as they come."""
    if library.is_installed("tensorrt"):
        pytest.skip("TensorRT is installed")
    if content is not None:
        (tmp_path / "tensorrt.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError) as caught:
        describe("tensorrt")
    assert problem in caught.value.problem
    assert "upfusion[tensorrt]" in caught.value.hint
