"""The two libraries' own parts, as far as they go without a GPU: what is said when something is missing, the cache."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from upfusion.runtime.backends.trt_logger import logger_of, taken_errors
from upfusion.runtime.cuda import CudaCore
from upfusion.runtime.errors import DeviceError, MissingDependencyError
from upfusion.runtime.fuser import load
from upfusion.runtime.manifest import BuildRecord, Parent


def write_engine(path: Path, make: Any, builder: str, plan: bytes = b"ptrt" + bytes(200)) -> Any:
    """An engine's two files, with a plan that no library loads; the manifest comes back."""
    path.write_bytes(plan)
    record = BuildRecord(
        builder=builder,
        version="1.7.1.116" if builder == "tensorrt-rtx" else "10.16.1",
        targets=("sm86", "sm89") if builder == "tensorrt-rtx" else (),
        gpu="" if builder == "tensorrt-rtx" else "NVIDIA A100",
        settings={},
        seconds=1.0,
        peak_memory_bytes=1,
        activation_memory_bytes=1,
        weights_bytes=123_000_000,
    )
    manifest = make.manifest(
        make.tensor_contract(), kind="engine", build=record, parent=Parent(name="fusion.onnx", sha256="0" * 64)
    )
    manifest.write(path)
    return manifest


def has_gpu() -> bool:
    try:
        CudaCore()
    except (DeviceError, MissingDependencyError):
        return False
    return True


def test_no_gpu(tmp_path: Path, make: Any) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("cuda.core")
    if has_gpu():
        pytest.skip("there is a GPU")
    write_engine(tmp_path / "fusion.engine", make, "tensorrt-rtx")
    with pytest.raises(DeviceError) as caught:
        load(tmp_path / "fusion.engine")
    assert caught.value.problem.startswith(
        "fusion.engine (built with TensorRT-RTX 1.7.1.116 for sm86, sm89) cannot run here: no usable NVIDIA GPU"
    )
    assert "run fusion.onnx with --device cpu" in caught.value.hint
    assert "upfusion build fusion.onnx -o fusion.engine --builder tensorrt-rtx" in caught.value.hint


@pytest.mark.parametrize(
    ("builder", "module", "extra"), [("tensorrt", "tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")]
)
def test_no_library(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch, builder: str, module: str, extra: str
) -> None:
    write_engine(tmp_path / "fusion.engine", make, builder)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"cannot run here: TensorRT.* cannot be imported") as caught:
        load(tmp_path / "fusion.engine")
    assert f"pip install 'upfusion[{extra}]'" in caught.value.hint


@pytest.mark.parametrize("failure", ["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "cudaErrorInsufficientDriver"])
def test_a_driver_that_is_too_old(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    core = pytest.importorskip("cuda.core")

    def refuse(device_id: int) -> None:
        raise RuntimeError(f"{failure}: this driver does not fit")

    monkeypatch.setattr(core, "Device", refuse)
    write_engine(tmp_path / "fusion.engine", make, "tensorrt-rtx")
    with pytest.raises(DeviceError, match=f"no usable NVIDIA GPU number 0: {failure}") as caught:
        load(tmp_path / "fusion.engine")
    assert caught.value.hint.startswith("update the NVIDIA driver")
    assert "run fusion.onnx with --device cpu" in caught.value.hint


def test_no_cuda_core(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    write_engine(tmp_path / "fusion.engine", make, "tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(MissingDependencyError, match="engines need cuda-core"):
        load(tmp_path / "fusion.engine")


def test_an_engine_that_was_never_accepted_is_announced(
    tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engine(tmp_path / "fusion.engine", make, "tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with caplog.at_level(logging.WARNING), pytest.raises(MissingDependencyError):
        load(tmp_path / "fusion.engine")
    assert "fusion.engine was never accepted: upfusion accept" in caplog.text


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("sm120", "upfusion build fusion.onnx -o fusion.engine --builder tensorrt-rtx --target sm120"),
        ("sm90", "upfusion build fusion.onnx -o fusion.engine --builder tensorrt on this machine"),
    ],
)
def test_rtx_says_why_a_plan_does_not_load(tmp_path: Path, make: Any, target: str, remedy: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    from upfusion.runtime.backends.tensorrt_rtx import TensorRTRTXLibrary

    path = tmp_path / "fusion.engine"
    manifest = write_engine(path, make, "tensorrt-rtx")
    cuda: Any = SimpleNamespace(name="Some GPU", target=target)
    with pytest.raises(DeviceError) as caught:
        TensorRTRTXLibrary(tmp_path / "cache").open(path, manifest, cuda)
    assert "built with TensorRT-RTX 1.7.1.116 for sm86, sm89; this machine has TensorRT-RTX" in caught.value.problem
    assert f"Some GPU ({target}): malformed engine" in caught.value.problem
    assert caught.value.hint == remedy


def test_loading_without_room_says_the_need(make: Any, tmp_path: Path) -> None:
    from upfusion.runtime.backends.misfit import misfit

    manifest = write_engine(tmp_path / "fusion.engine", make, "tensorrt")
    cuda: Any = SimpleNamespace(name="Some GPU", target="sm80", memory=lambda: (10_000_000, 8_000_000_000))
    error = misfit(tmp_path / "fusion.engine", manifest, cuda, "TensorRT 11", "CUDA error: out of memory", "")
    assert "loading fusion.engine needs 123 MB, 10 MB of 8,000 MB are free" in error.problem


class StubCache:
    """A runtime cache of one library version: it takes only what it wrote."""

    def __init__(self, compiled: bytes) -> None:
        self.compiled, self.taken = compiled, b""

    def serialize(self) -> bytes:
        return self.compiled

    def deserialize(self, blob: bytes) -> bool:
        if blob.startswith(b"1.7:"):
            self.taken = blob
        return bool(self.taken)


def test_compiled_kernels_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx")
    from upfusion.runtime.backends.tensorrt_rtx import TensorRTRTXLibrary

    path = tmp_path / "fusion.engine.cache"
    library = TensorRTRTXLibrary(path)
    library.warmed()  # no context yet, nothing to keep
    assert not path.exists()
    cache = StubCache(b"1.7:kernels")
    config = SimpleNamespace(create_runtime_cache=lambda: cache)
    library._cache = library._stored_cache(config)
    library.warmed()
    assert path.read_bytes() == b"1.7:kernels"
    written = path.stat().st_mtime_ns
    library.warmed()
    assert path.stat().st_mtime_ns == written  # nothing new, nothing written

    cache = StubCache(b"1.7:kernels")
    fresh = TensorRTRTXLibrary(path)
    assert fresh._stored_cache(SimpleNamespace(create_runtime_cache=lambda: cache)).taken == b"1.7:kernels"
    path.write_bytes(b"1.6:kernels")
    cache = StubCache(b"1.7:others")
    with caplog.at_level(logging.INFO):
        fresh._cache = fresh._stored_cache(SimpleNamespace(create_runtime_cache=lambda: cache))
    assert "is of another GPU or version" in caplog.text
    fresh.warmed()
    assert path.read_bytes() == b"1.7:others"


def test_kernels_that_cannot_be_kept_are_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx")
    from upfusion.runtime.backends.tensorrt_rtx import TensorRTRTXLibrary

    library = TensorRTRTXLibrary(tmp_path / "none" / "fusion.engine.cache")
    library._cache = StubCache(b"1.7:kernels")  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        library.warmed()
    assert "compiled kernels are not kept" in caplog.text


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_messages_of_the_library(name: str, caplog: pytest.LogCaptureFixture) -> None:
    library = pytest.importorskip(name)
    logger = logger_of(library)
    assert logger_of(library) is logger
    taken_errors(logger)
    with caplog.at_level(logging.INFO):
        logger.log(library.ILogger.Severity.WARNING, "slow kernel")
        for _ in range(2):
            logger.log(library.ILogger.Severity.ERROR, "bad plan")
        logger.log(library.ILogger.Severity.INFO, "chatter")
    assert taken_errors(logger) == "bad plan"
    assert taken_errors(logger) == ""
    assert [record.message for record in caplog.records] == ["slow kernel"]


def test_both_libraries_fit_the_seam() -> None:
    """Every call that the shared code makes exists in the library's classes."""
    from upfusion.runtime.backends import engine_library, loaded_engine

    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            library = __import__(name)
        except ImportError:
            continue
        for protocol, real in (
            (engine_library.Context, library.IExecutionContext),
            (engine_library.Engine, library.ICudaEngine),
        ):
            used = {member for member in vars(protocol) if not member.startswith("_")}
            assert used <= set(dir(real)), f"{name}: {used - set(dir(real))}"
        assert set(loaded_engine._TYPES) <= set(library.DataType.__members__)
        assert {"INPUT", "OUTPUT"} <= set(library.TensorIOMode.__members__)


def test_cuda_core_fits_the_seam() -> None:
    """Every call of the code that needs a GPU exists in the installed cuda-core."""
    core = pytest.importorskip("cuda.core")
    graph, utils = pytest.importorskip("cuda.core.graph"), pytest.importorskip("cuda.core.utils")
    for owner, used in (
        (core.Device, "set_current name compute_capability create_stream allocate device_id"),
        (core.Stream, "from_handle create_graph_builder sync record wait handle"),
        (core.Buffer, "from_handle copy_to handle size close"),
        (core.LegacyPinnedMemoryResource, "allocate"),
        (core.Event, "__sub__"),
        (graph.GraphBuilder, "begin_building end_building stream graph_definition complete close"),
        (graph.GraphDefinition, "nodes"),
        (graph.Graph, "upload launch close"),
        (utils.StridedMemoryView, "from_any_interface from_buffer __dlpack__ __dlpack_device__ strides shape dtype"),
    ):
        assert not [name for name in used.split() if not hasattr(owner, name)], owner
    assert core.StreamOptions(nonblocking=True).nonblocking
    assert core.EventOptions(timing_enabled=True).timing_enabled
