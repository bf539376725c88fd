"""The suite's plan, what it says without a GPU, and its steps as far as a CPU takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu_contenders, gpu_suite
from benchmarks.gpu_contenders import KINDS, engine_path, graph_path, opened_network, those_that_open
from benchmarks.gpu_suite import FIRST, REST, NothingToRunError, Setting, main, plan
from benchmarks.steps import CANNOT_RUN
from upfusion.cli.artifacts import open_fuser
from upfusion.export.builder import installed_gpus
from upfusion.samples import night_street
from upfusion.weights import TINY


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(checkpoint=TINY, work=tmp_path, size=(64, 64), batch=1)


@pytest.mark.skipif(bool(installed_gpus()), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--work", str(tmp_path / "work"), "-o", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err == "gpu_suite: there is no NVIDIA GPU here, so nothing was run\n"
    assert not list(tmp_path.iterdir())


def test_the_plan(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    steps = plan(setting, ("--work", "w"))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert names[0] == "graphs 480x640 batch 1"
    assert "latency 480x640 batch 1" in names[:6]
    assert {name.rsplit(" ", 3)[1] for name in names} == {"480x640", "256x256", "1024x1280"}
    places = {f"latency {size[0]}x{size[1]} batch {batch}" for size, batch in (FIRST, *REST)}
    assert places <= set(names)
    assert len(places) == 6, "three sizes, two batches"
    for step in steps:
        assert step.command[-2:] == ("--work", "w")
        assert "{into}" in step.command
    # What has to be there first comes first.
    assert names.index("throughput 480x640 batch 1") > names.index("build tensorrt 480x640 batch 4")
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(steps)


def test_a_step_that_cannot_run_writes_why(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "installed_gpus", lambda: ["a GPU"])
    into = tmp_path / "figures.json"
    for step, reason in (("cuda-graph", "no engine was accepted at 64x64"), ("throughput", "no engine was accepted")):
        code = main(["--step", step, "--into", str(into), "--size", "64x64", "--work", str(tmp_path)])
        assert code == CANNOT_RUN
        assert reason in json.loads(into.read_text())["why"]
    code = main(["--step", "build", "--builder", "tensorrt", "--into", str(into), "--work", str(tmp_path)])
    assert (code, json.loads(into.read_text())["why"]) == (CANNOT_RUN, "ours.fp16.480x640.b1.onnx was not made")


def test_what_opens_is_measured_and_the_rest_says_why(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def opens(name: str, *details: Any) -> Any:
        if "eager" not in name:
            raise RuntimeError("no CUDA here\nand more")
        return opened_network(name, setting.checkpoint, setting.batch, half=False, compiled=False, device="cpu")

    monkeypatch.setattr(gpu_suite, "open_kind", opens)
    monkeypatch.setattr(
        gpu_suite, "LATENCY", gpu_suite.BenchOptions(runs=1, warm_up=0, parts_runs=1, seconds=0.0, windows=1)
    )
    figures = gpu_suite.latency(setting, ["PyTorch eager fp32", "TensorRT fp16"])
    assert figures["not_opened"] == {"TensorRT fp16": "RuntimeError: no CUDA here"}
    assert figures["very_first_calls_ms"]["PyTorch eager fp32"] > 0
    (artifact,) = figures["artifacts"]
    assert set(artifact["parts_ms"]) == {"prepare", "copy_in", "compute", "copy_out", "finish"}
    with pytest.raises(NothingToRunError, match="TensorRT fp16: RuntimeError"):
        gpu_suite.latency(setting, ["TensorRT fp16"])


@pytest.mark.parametrize("half", [False, True])
def test_the_deploy_form_in_pytorch_is_the_network(setting: Setting, half: bool) -> None:
    visible, infrared = night_street(64, 64)
    opened = opened_network("PyTorch", TINY, 1, half=half, compiled=False, device="cpu")
    fused = gpu_contenders.Fuser(opened.backend, opened.contract)(visible, infrared, "gray").astype(int)
    with open_fuser(TINY, device="cpu") as reference:
        difference = np.abs(fused - reference(visible, infrared, "gray"))
    # float32: the same arithmetic. Half precision: 1 level and 0.04 on average here; a near tie may fall otherwise.
    assert difference.max() <= (10 if half else 1)
    assert difference.mean() <= (0.5 if half else 0.01)


def test_a_first_call_that_fails_is_no_contender(setting: Setting) -> None:
    def opens(name: str) -> Any:
        opened = opened_network(name, TINY, 1, half=False, compiled=False, device="cpu")
        opened.backend.close()
        return opened

    found, first_ms, why = those_that_open(["closed"], opens, night_street(64, 64))
    assert (found, first_ms, list(why)) == ([], {}, ["closed"])


def test_every_kind_has_its_files(tmp_path: Path) -> None:
    """Names of files are made in one place; what is opened is what is built."""
    assert graph_path(tmp_path, "ours", "fp16", (480, 640), 4).name == "ours.fp16.480x640.b4.onnx"
    assert engine_path(tmp_path, "tensorrt", (480, 640), 4).name == "tensorrt.fp16.480x640.b4.engine"
    assert {kind[1] for kind in KINDS.values() if kind[0] == "engine"} == set(gpu_suite.BUILDERS)
    assert {kind[2:] for kind in KINDS.values() if kind[0] == "onnx"} == {
        ("plain", "fp32"),
        ("ours", "fp32"),
        ("ours", "fp16"),
    }
