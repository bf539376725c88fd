"""Opening artifacts: digests, manifests, devices; each failure names the file and the way out."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from upfusion.runtime.backends.engine_library import EngineOptions
from upfusion.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeOptions, available_providers
from upfusion.runtime.errors import ArtifactError, DeviceError, InputError, ManifestError, MissingDependencyError
from upfusion.runtime.fuser import load
from upfusion.runtime.manifest import BuildRecord, Parent, manifest_path


def engine(path: Path, make: Any, **changes: Any) -> Path:
    """An engine's files, without an engine inside."""
    path.write_bytes(b"ptrt" + bytes(100))
    build = BuildRecord(
        builder="tensorrt-rtx",
        version="1.7.1",
        targets=("sm89",),
        gpu="",
        settings={},
        seconds=1.0,
        peak_memory_bytes=1,
        activation_memory_bytes=1,
        weights_bytes=1,
    )
    manifest = make.manifest(
        make.tensor_contract(),
        kind="engine",
        build=dataclasses.replace(build, **changes),
        parent=Parent(name="fusion.onnx", sha256="0" * 64),
    )
    manifest.write(path)
    return path


def test_digest_is_checked(tmp_path: Path, make: Any) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match=r"tiny\.onnx is not the file its manifest describes"):
        load(path)


def test_manifest_in_the_metadata_is_enough(tmp_path: Path, make: Any, noise: Any, caplog: Any) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract(), sidecar=False)
    with caplog.at_level(logging.WARNING), load(path) as fuser:
        assert fuser(noise((16, 24, 3)), noise((16, 24))).shape == (16, 24, 3)
    assert "without a check of the file's digest" in caplog.text


def test_foreign_graph(tmp_path: Path, make: Any) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract(), sidecar=False, metadata=False)
    with pytest.raises(ManifestError, match=r"tiny\.onnx carries no manifest") as caught:
        load(path)
    assert "upfusion export CHECKPOINT" in caught.value.hint


def test_manifest_of_another_graph(tmp_path: Path, make: Any) -> None:
    contract = make.tensor_contract()
    other = dataclasses.replace(contract, outputs=(dataclasses.replace(contract.outputs[0], name="image"),))
    path = make.onnx(tmp_path / "tiny.onnx", contract, sidecar=False)
    make.manifest(other).write(path)
    with pytest.raises(ManifestError, match="names outputs image, the graph has fused"):
        load(path)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.98])
def test_truncated_graph(tmp_path: Path, make: Any, part: float) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract(), sidecar=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ArtifactError, match=r"tiny\.onnx is truncated or not an ONNX file"):
        load(path)


def test_files_that_are_no_artifacts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.onnx: no such file"):
        load(tmp_path / "none.onnx")
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="is a checkpoint") as caught:
        load(tmp_path / "weights.safetensors")
    assert "upfusion export" in caught.value.hint
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="neither an ONNX file nor an engine"):
        load(tmp_path / "x.bin")


def test_devices(tmp_path: Path, make: Any, caplog: Any) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    for name in ("gpu", "cpu:1", "cuda:x", ""):
        with pytest.raises(InputError, match="unknown device"):
            load(path, device=name)
    with caplog.at_level(logging.INFO), load(path, device="cpu", options=make.options) as fuser:
        assert fuser.device == "CPU"
    assert "tiny.onnx runs on CPU" in caplog.text


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_a_missing_provider_is_never_replaced(tmp_path: Path, make: Any, device: str) -> None:
    if device.split(":")[0] in available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    with pytest.raises(MissingDependencyError, match=r"has no .*ExecutionProvider; it has .*CPU") as caught:
        load(path, device=device)
    assert "onnxruntime-gpu" in caught.value.hint
    assert "--device cpu" in caught.value.hint


def test_a_provider_that_does_not_start_is_never_replaced(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(DeviceError, match="could not start"):
        load(path, device="cuda")


def test_auto_says_why_not_the_gpu(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with caplog.at_level(logging.INFO), load(path) as fuser:
        assert fuser.device == "CPU"
    assert "runs on the CPU: ONNX Runtime could not start CUDAExecutionProvider" in caplog.text


def test_engine_on_the_cpu(tmp_path: Path, make: Any) -> None:
    with pytest.raises(DeviceError, match="runs on an NVIDIA GPU only") as caught:
        load(engine(tmp_path / "fusion.engine", make), device="cpu")
    assert "fusion.onnx" in caught.value.hint


def test_engine_needs_its_manifest(tmp_path: Path, make: Any) -> None:
    path = engine(tmp_path / "fusion.engine", make)
    path.write_bytes(b"other")
    with pytest.raises(ArtifactError, match="is not the file its manifest describes"):
        load(path)
    manifest_path(path).unlink()
    with pytest.raises(ManifestError, match=r"fusion\.engine\.json is missing"):
        load(path)


def test_engine_of_an_unknown_builder(tmp_path: Path, make: Any) -> None:
    with pytest.raises(ArtifactError, match="names the builder openvino"):
        load(engine(tmp_path / "fusion.engine", make, builder="openvino"))


def test_extra_outputs_are_passed_on(tmp_path: Path, make: Any, noise: Any) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract(), extra_output=True)
    backend = OnnxRuntimeBackend(path, None, OnnxRuntimeOptions())
    inputs = backend.buffers({"visible": (1, 3, 16, 24), "infrared": (1, 1, 16, 24)})
    inputs["infrared"][0, 0, 3, 4] = 1
    outputs = backend.run(inputs)
    assert outputs["scpm.order"].tolist() == [[0], [0], [3], [4]]
    assert outputs["fused"][0, 0, 3, 4] == np.float32(0.5)
    with load(path, options=make.options) as fuser:
        assert fuser(noise((16, 24, 3)), noise((16, 24))).shape == (16, 24, 3)


def test_buffers_are_used_in_place_and_kept(tmp_path: Path, make: Any) -> None:
    backend = OnnxRuntimeBackend(make.onnx(tmp_path / "tiny.onnx", make.tensor_contract()), None, OnnxRuntimeOptions())
    shapes = {"visible": (1, 3, 16, 24), "infrared": (1, 1, 16, 24)}
    buffers = backend.buffers(shapes)
    assert backend.buffers(shapes)["visible"] is buffers["visible"]
    fused = backend.run(buffers)["fused"]
    foreign = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    assert backend.run(foreign)["fused"] is fused
    assert np.allclose(fused, 1, rtol=0, atol=1e-6)  # 0.299 + 0.587 + 0.114 in float32
    twin = backend.another()
    assert twin.buffers(shapes)["visible"] is not buffers["visible"]
    for height in range(8, 120, 8):  # more shapes than are kept
        backend.buffers({"visible": (1, 3, height, 8), "infrared": (1, 1, height, 8)})
    assert backend.buffers(shapes)["visible"] is not buffers["visible"]


def test_options() -> None:
    with pytest.raises(InputError, match="unknown execution provider npu"):
        OnnxRuntimeOptions(provider="npu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="negative"):
        OnnxRuntimeOptions(threads=-1)


def test_options_of_the_other_kind(tmp_path: Path, make: Any) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    with pytest.raises(InputError, match=r"tiny\.onnx runs on ONNX Runtime, which takes no EngineOptions"):
        load(path, options=EngineOptions())
    with pytest.raises(InputError, match=r"fusion\.engine is an engine, which takes no OnnxRuntimeOptions"):
        load(engine(tmp_path / "fusion.engine", make), options=OnnxRuntimeOptions())


def test_threads_change_nothing_but_time(tmp_path: Path, make: Any, noise: Any) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    visible, infrared = noise((61, 83, 3)), noise((61, 83))
    results = []
    for options in (
        OnnxRuntimeOptions(threads=1, spin=False),
        OnnxRuntimeOptions(threads=2, optimization="none"),
    ):
        with load(path, options=options) as fuser:
            results.append(fuser(visible, infrared))
    assert np.abs(results[0].astype(int) - results[1].astype(int)).max() <= 1  # sums in another order


def test_run_failures_are_translated(tmp_path: Path, make: Any) -> None:
    backend = OnnxRuntimeBackend(
        make.onnx(tmp_path / "tiny.onnx", make.tensor_contract(make.one_size(16, 24))), None, OnnxRuntimeOptions()
    )
    with pytest.raises(DeviceError, match=r"tiny\.onnx: ONNX Runtime failed on CPU: .*invalid dimensions"):
        backend.run({"visible": np.zeros((1, 3, 16, 32), np.float32), "infrared": np.zeros((1, 1, 16, 32), np.float32)})

    class NoMemory:
        def run_with_iobinding(self, binding: Any) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 123")

    step = backend._step(((1, 3, 16, 24), (1, 1, 16, 24)))
    step._session = NoMemory()
    with pytest.raises(DeviceError, match=r"out of memory on CPU: .*size 123"):
        backend.run({"visible": np.zeros((1, 3, 16, 24), np.float32), "infrared": np.zeros((1, 1, 16, 24), np.float32)})
