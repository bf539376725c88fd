"""Engines on a real GPU: equal to ONNX Runtime, through graphs, shapes, threads and arrays of other libraries."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upfusion.runtime.backends.engine_library import EngineOptions
from upfusion.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeOptions
from upfusion.runtime.cuda import CudaCore
from upfusion.runtime.errors import BuildError, DeviceError, InputError, MissingDependencyError
from upfusion.runtime.fuser import Fuser, load
from upfusion.runtime.manifest import SizeRange

pytestmark = pytest.mark.gpu

SIZES = SizeRange(minimum=(8, 8), optimum=(32, 48), maximum=(480, 640))
ONE_LEVEL = 1
"""FP32 kernels of two libraries add in different orders: a value may round to the neighbouring level."""


@pytest.fixture(scope="module")
def cuda() -> CudaCore:
    try:
        return CudaCore()
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(f"not run: {error.problem}")


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, make: Any, cuda: CudaCore) -> Iterator[tuple[Path, Path]]:
    """An ONNX file and the engine built from it, for any size."""
    from upfusion.export.builder import BuildOptions, engine_from_onnx

    onnx_path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract(SIZES))
    targets = (cuda.target,) if request.param == "tensorrt-rtx" else ()
    try:
        engine_from_onnx(onnx_path, tmp_path / "tiny.engine", BuildOptions(builder=request.param, targets=targets))
    except (MissingDependencyError, InputError, BuildError) as error:
        pytest.skip(f"not run: {error.problem}")
    return onnx_path, tmp_path / "tiny.engine"


def difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("graphs", [True, False])
def test_equal_to_onnx_runtime(engine: tuple[Path, Path], noise: Any, graphs: bool) -> None:
    with (
        load(engine[0], device="cpu") as reference,
        load(engine[1], options=EngineOptions(graphs=graphs)) as fuser,
    ):
        for seed, size in enumerate([(32, 48), (61, 83), (480, 640), (32, 48)] * 2):
            visible, infrared = noise((*size, 3), seed=seed), noise(size, seed=seed + 50)
            assert difference(fuser(visible, infrared), reference(visible, infrared)) <= ONE_LEVEL


def test_the_graph_is_used(engine: tuple[Path, Path], noise: Any, caplog: pytest.LogCaptureFixture) -> None:
    with load(engine[1]) as fuser:
        for _ in range(2):
            fuser(noise((32, 48, 3)), noise((32, 48)))
    assert "without a CUDA graph" not in caplog.text


def test_threads_and_contexts(engine: tuple[Path, Path], noise: Any) -> None:
    pairs = [(noise((32, 48, 3), seed=seed), noise((32, 48), seed=seed + 50)) for seed in range(4)]
    with load(engine[1], contexts=2) as fuser:
        alone = [fuser(*pair) for pair in pairs]
        wrong: list[int] = []

        def work(place: int) -> None:
            for _ in range(50):
                if not np.array_equal(fuser(*pairs[place]), alone[place]):
                    wrong.append(place)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert [outcome.result().shape for outcome in fuser.stream(pairs)] == [(32, 48, 3)] * 4


def test_compiled_kernels_are_kept(engine: tuple[Path, Path], noise: Any) -> None:
    with load(engine[1]) as fuser:
        fuser(noise((32, 48, 3)), noise((32, 48)))
        is_rtx = "RTX " in fuser.device.split("(")[1]
    assert engine[1].with_name("tiny.engine.cache").is_file() == is_rtx


def test_parts(engine: tuple[Path, Path], noise: Any) -> None:
    with load(engine[1]) as fuser:
        parts = fuser.parts_ms(noise((480, 640, 3)), noise((480, 640)))
    assert {"prepare", "copy_in", "compute", "copy_out", "finish"} <= parts.keys()
    assert all(value > 0 for value in parts.values())


def planes(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.random((1, count, 32, 48), np.float32) for name, count in (("visible", 3), ("infrared", 1))}


def on_cpu(onnx_path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.array(OnnxRuntimeBackend(onnx_path, None, OnnxRuntimeOptions()).run(inputs)["fused"])


def test_torch_tensors(engine: tuple[Path, Path]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    stream = torch.cuda.Stream()
    with load(engine[1]) as fuser, torch.cuda.stream(stream):
        for seed in range(3):
            inputs = planes(seed)
            tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
            fused = torch.from_dlpack(fuser(tensors["visible"], tensors["infrared"], stream=stream))
            out = torch.empty_like(tensors["infrared"])
            fuser(tensors["visible"], tensors["infrared"], stream=stream, out=out)
            stream.synchronize()
            for result in (fused, out):
                # TF32 is off and the network is a sum of four products: equal but for their order.
                assert np.allclose(result.cpu().numpy(), on_cpu(engine[0], inputs), rtol=0, atol=1e-6)


def test_cupy_arrays(engine: tuple[Path, Path]) -> None:
    cupy = pytest.importorskip("cupy")
    with load(engine[1]) as fuser:
        inputs = planes()
        arrays = {name: cupy.asarray(array) for name, array in inputs.items()}
        fused = cupy.asnumpy(cupy.asarray(fuser(arrays["visible"], arrays["infrared"])))
        assert np.allclose(fused, on_cpu(engine[0], inputs), rtol=0, atol=1e-6)  # another order of four products


PYCUDA = """
import sys
import numpy as np
import pycuda.autoprimaryctx
import pycuda.gpuarray as gpuarray
from upfusion.runtime import load
sys.path.insert(0, sys.argv[1])
inputs = dict(np.load(sys.argv[1] + "/inputs.npz"))
with load(sys.argv[1] + "/tiny.engine") as fuser:
    for _ in range(3):
        fused = fuser(gpuarray.to_gpu(inputs["visible"]), gpuarray.to_gpu(inputs["infrared"]))
        result = gpuarray.GPUArray(fused.shape, fused.dtype, gpudata=fused.address, base=fused).get()
np.save(sys.argv[1] + "/fused.npy", result)
"""


def test_pycuda_arrays(engine: tuple[Path, Path]) -> None:
    """In a process of its own, since PyCUDA takes over the thread's context on import."""
    pytest.importorskip("pycuda")
    folder, inputs = engine[1].parent, planes()
    np.savez(folder / "inputs.npz", **inputs)
    subprocess.run([sys.executable, "-c", PYCUDA, str(folder)], check=True, timeout=120)
    assert np.allclose(np.load(folder / "fused.npy"), on_cpu(engine[0], inputs), rtol=0, atol=1e-6)  # as above


def test_memory_comes_back(engine: tuple[Path, Path], cuda: CudaCore, noise: Any) -> None:
    def free_after_use() -> int:
        with load(engine[1]) as fuser:
            assert isinstance(fuser, Fuser)
            fuser(noise((480, 640, 3)), noise((480, 640)))
        return cuda.memory()[0]

    first = free_after_use()
    for _ in range(3):
        last = free_after_use()
    assert first - last < 1 << 20  # nothing that grows with every load


def test_an_engine_of_another_version(engine: tuple[Path, Path], make: Any) -> None:
    import dataclasses

    from upfusion.runtime.manifest import read_manifest

    manifest = read_manifest(engine[1])
    plan = bytearray(engine[1].read_bytes())
    plan[4:32] = bytes(28)  # where both libraries keep their version
    engine[1].write_bytes(bytes(plan))
    dataclasses.replace(manifest).write(engine[1])
    with pytest.raises(DeviceError, match=r"tiny\.engine was built with TensorRT") as caught:
        load(engine[1])
    assert "upfusion build tiny.onnx -o tiny.engine" in caught.value.hint
