"""Engines on a machine without a GPU: a host-memory CUDA and a small TensorRT behind the seams, with faults on order.

The fake streams are lazy: nothing that is enqueued happens before somebody waits for it, so a missing
synchronisation shows as stale data, and memory that was given back is an error to touch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upfusion.runtime.backends.engine import EngineBackend
from upfusion.runtime.backends.engine_library import EngineOptions, Library
from upfusion.runtime.backends.misfit import misfit
from upfusion.runtime.cuda import ForeignArray, out_of_memory
from upfusion.runtime.errors import DeviceError, InputError, ManifestError
from upfusion.runtime.fuser import Fuser
from upfusion.runtime.gpu_arrays import DeviceArray, is_on_gpu
from upfusion.runtime.manifest import BuildRecord, Parent, TensorSpec


class FakeBlock:
    def __init__(self, cuda: FakeCuda, size: int, pinned: bool) -> None:
        self.memory = np.full(size, 0xCD, np.uint8)
        self.address, self.size, self.pinned, self.cuda = self.memory.ctypes.data, size, pinned, cuda
        cuda.live[self.address] = self

    @property
    def bytes(self) -> np.ndarray:
        assert self.pinned
        return self.memory

    def close(self) -> None:
        assert self.cuda.live.pop(self.address) is self


class FakeGraph:
    def __init__(self, operations: list[Callable[[], None]]) -> None:
        self.operations, self.closed = operations, False

    @property
    def nodes(self) -> int:
        return len(self.operations)

    def launch(self, stream: FakeStream) -> None:
        assert not self.closed
        stream.cuda.launches += 1
        for operation in self.operations:
            stream.enqueue(operation)

    def close(self) -> None:
        self.closed = True


class FakeStream:
    def __init__(self, cuda: FakeCuda, handle: int) -> None:
        self.cuda, self.handle = cuda, handle
        self.waiting: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.done = 0

    def enqueue(self, operation: Callable[[], None]) -> None:
        assert self.cuda.current[threading.get_ident()] == 0, "the device was not set in this thread"
        (self.waiting if self.captured is None else self.captured).append(operation)

    def copy(self, source: FakeBlock, target: FakeBlock) -> None:
        assert source.size == target.size

        def operation() -> None:
            for block in (source, target):
                assert self.cuda.live.get(block.address) is block, "copy from or to memory that was given back"
            target.memory[...] = source.memory

        self.enqueue(operation)

    def run(self, until: float = math.inf) -> None:
        while self.waiting and self.done < until:
            operation = self.waiting.pop(0)
            self.done += 1
            operation()

    def synchronize(self) -> None:
        assert self.captured is None, "synchronisation while capturing"
        self.cuda.synchronisations += 1
        if self.cuda.synchronisations in self.cuda.failing_waits:
            self.waiting.clear()
            raise DeviceError("CUDA failed while running: CUDA_ERROR_ILLEGAL_ADDRESS", "restart the program")
        self.run()

    def capture(self, work: Callable[[FakeStream], None]) -> FakeGraph:
        if self.cuda.capture_fails:
            raise DeviceError("CUDA failed while capturing a graph: operation not permitted", "")
        self.captured = []
        try:
            work(self)
            operations = self.captured
        finally:
            self.captured = None
        graph = FakeGraph([] if self.cuda.capture_is_empty else operations)
        if self.cuda.replay_is_stale:  # the copies out are there, but the network was captured elsewhere
            graph.operations = [operation for operation in operations if operation.__name__ != "compute"]
            graph.operations += [lambda: None]
        self.cuda.graphs.append(graph)
        return graph

    def record(self, *, timed: bool = False) -> tuple[FakeStream, int]:
        return self, self.done + len(self.waiting)

    def wait(self, event: tuple[FakeStream, int]) -> None:
        self.enqueue(lambda: event[0].run(event[1]))


class FakeCuda:
    """A GPU in host memory."""

    name, target = "Fake 4090", "sm89"

    def __init__(self) -> None:
        self.live: dict[int, FakeBlock] = {}
        self.streams: dict[int, FakeStream] = {}
        self.graphs: list[FakeGraph] = []
        self.current: dict[int, int] = {}
        self.total = 1 << 30
        self.launches = self.synchronisations = self.allocations = 0
        self.capture_fails = self.capture_is_empty = self.replay_is_stale = False
        self.failing_waits: set[int] = set()
        """Numbers of the synchronisations that find the GPU failed."""

    def activate(self) -> None:
        self.current[threading.get_ident()] = 0

    def memory(self) -> tuple[int, int]:
        return self.total - sum(block.size for block in self.live.values() if not block.pinned), self.total

    def stream(self) -> FakeStream:
        stream = FakeStream(self, len(self.streams) + 1)
        self.streams[stream.handle] = stream
        return stream

    def foreign_stream(self, stream: Any) -> FakeStream:
        return self.streams[stream]

    def allocate(self, size: int, stream: FakeStream, purpose: str) -> FakeBlock:
        self.allocations += 1
        if size > self.memory()[0]:
            raise out_of_memory(purpose, size, self)
        return FakeBlock(self, size, pinned=False)

    def allocate_pinned(self, size: int) -> FakeBlock:
        self.allocations += 1
        return FakeBlock(self, size, pinned=True)

    def foreign_array(self, array: Any, stream: FakeStream) -> ForeignArray:
        return ForeignArray(block=array.block, shape=array.shape, dtype=array.dtype)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        return float(last[1] - first[1])

    def exported(self, block: FakeBlock, shape: Sequence[int], dtype: np.dtype) -> Any:
        return block.memory.view(dtype).reshape(shape)


class ForeignImage:
    """What a CuPy or PyTorch array is to us."""

    def __init__(self, cuda: FakeCuda, values: np.ndarray) -> None:
        self.block = FakeBlock(cuda, values.nbytes, pinned=False)
        self.block.memory[...] = values.reshape(-1).view(np.uint8)
        self.shape, self.dtype = values.shape, values.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.block.address, False), "version": 3}

    @property
    def values(self) -> np.ndarray:
        return self.block.memory.view(self.dtype).reshape(self.shape)


class Member:
    def __init__(self, name: str) -> None:
        self.name = name


class FakeEngine:
    """Two inputs and one output; fused = mean of the channels' mean and the infrared image.

    With ``given``, an order comes in and fused = mean of the channel that it names first and the infrared image.
    """

    def __init__(
        self, profiles: Sequence[tuple[tuple[int, int], ...]], image_io: bool = False, given: bool = False
    ) -> None:
        self.profiles, self.image_io = profiles, image_io
        self.names = ("visible", "infrared", *(["scpm.order"] if given else []), "fused")
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(profiles)
        self.dtype = "UINT8" if image_io else "FLOAT"

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Member:
        return Member("OUTPUT" if name == "fused" else "INPUT")

    def get_tensor_dtype(self, name: str) -> Member:
        return Member("INT64" if name == "scpm.order" else self.dtype)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        if name == "scpm.order":
            return [(1, 3)] * 3
        if self.image_io:
            return [(1, *size, 3) if name == "visible" else (1, *size) for size in self.profiles[profile_index]]
        return [(1, 3 if name == "visible" else 1, *size) for size in self.profiles[profile_index]]


class FakeContext:
    def __init__(self, library: FakeLibrary, own_graph: bool) -> None:
        self.library, self.own_graph = library, own_graph
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.activations = (0, 0)
        self.profile = -1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return self.library.refuse != "profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.library.refuse != "shape"

    def infer_shapes(self) -> list[str]:
        return ["fused"] if self.library.refuse == "infer" else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["infrared"] if name == "fused" else self.shapes[name]

    def update_device_memory_size_for_shapes(self) -> int:
        return 100 * int(np.prod(self.shapes["infrared"]))

    def set_device_memory(self, memory: int, size: int) -> None:
        self.activations = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return self.library.refuse != "address"

    def execute_async_v3(self, stream_handle: int) -> bool:
        library, cuda = self.library, self.library.cuda
        library.enqueues += 1
        if library.refuse == "enqueue" or library.enqueues == library.refuse_enqueue:
            library.said = "IExecutionContext::enqueueV3: Error Code 1: Cask (invalid launch)"
            return False
        shapes, addresses, (activations, size) = dict(self.shapes), dict(self.addresses), self.activations

        def compute() -> None:
            assert size >= self.update_device_memory_size_for_shapes()
            block = cuda.live.get(activations)
            assert block is not None, "activation memory was given back"
            block.memory[...] = 0xEE
            arrays = {}
            for name, address in addresses.items():
                assert address in cuda.live, f"{name} is in memory that was given back"
                shape = shapes["infrared"] if name == "fused" else shapes[name]
                kind = np.dtype(np.uint8 if library.engine.image_io else np.float32)
                kind = np.dtype(np.int64) if name == "scpm.order" else kind
                raw = (ctypes.c_uint8 * (int(np.prod(shape)) * kind.itemsize)).from_address(address)
                arrays[name] = np.ctypeslib.as_array(raw).view(kind).reshape(shape)
            axis = 3 if library.engine.image_io else 1
            luma = arrays["visible"].mean(axis, dtype=np.float32, keepdims=not library.engine.image_io)
            if "scpm.order" in arrays:
                luma = arrays["visible"][:, arrays["scpm.order"][:, 0]]  # an index out of range is an error
            fused = (luma + arrays["infrared"]) / 2
            noise = library.noise * np.random.default_rng(library.runs).random(fused.shape, np.float32)
            arrays["fused"][...] = fused + noise
            library.runs += 1

        cuda.streams[stream_handle].enqueue(compute)
        return True


class FakeLibrary(Library):
    title = "FakeRT 11.4"

    def __init__(self, engine: FakeEngine, cuda: FakeCuda) -> None:
        self.engine, self.cuda = engine, cuda
        self.refuse = self.said = ""
        self.refuse_enqueue = -1
        self.noise = 0.0
        self.enqueues = self.runs = self.warmed_up = 0
        self.is_capturable = True
        self.contexts: list[FakeContext] = []

    def open(self, path: Path, manifest: Any, cuda: Any) -> FakeEngine:
        if self.refuse == "plan":
            raise misfit(path, manifest, cuda, self.title, "expecting version 11.4", "build it again")
        return self.engine

    def context(self, engine: Any, *, own_graph: bool) -> FakeContext | None:
        if self.refuse == "context":
            self.said = "CUDA runtime error in allocate: out of memory"
            return None
        self.contexts.append(FakeContext(self, own_graph))
        return self.contexts[-1]

    def capturable(self, context: Any, stream: Any) -> bool:
        return self.is_capturable

    def warmed(self) -> None:
        self.warmed_up += 1

    def complaints(self) -> str:
        said, self.said = self.said, ""
        return said


class Bench:
    """A fake GPU with a fake library, and an artifact to load on them."""

    def __init__(self, make: Any, profiles: Any = (((8, 8), (32, 48), (512, 512)),), image: str = "") -> None:
        self.contract = make.image_contract(image) if image else make.tensor_contract()
        record = BuildRecord(
            builder="tensorrt",
            version="10.16.1",
            targets=(),
            gpu="NVIDIA A100",
            settings={},
            seconds=1.0,
            peak_memory_bytes=1,
            activation_memory_bytes=1,
            weights_bytes=1,
        )
        self.manifest = make.manifest(
            self.contract, kind="engine", build=record, parent=Parent(name="fusion.onnx", sha256="0" * 64)
        )
        self.cuda = FakeCuda()
        self.engine = FakeEngine(profiles, image_io=bool(image))
        self.library = FakeLibrary(self.engine, self.cuda)

    def load(self, **options: Any) -> EngineBackend:
        return EngineBackend(Path("fusion.engine"), self.manifest, self.library, self.cuda, EngineOptions(**options))

    def fuser(self, *, contexts: int = 1, **options: Any) -> Fuser:
        return Fuser(self.load(**options), self.contract, name="fusion.engine", contexts=contexts)


@pytest.fixture
def bench(make: Any) -> Iterator[Bench]:
    made = Bench(make)
    yield made
    assert not made.cuda.live, "memory was not given back"


def planes(height: int = 16, width: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "visible": random.random((1, 3, height, width), np.float32),
        "infrared": random.random((1, 1, height, width), np.float32),
    }


def assert_fused(outputs: Any, inputs: dict[str, np.ndarray]) -> None:
    expected = (inputs["visible"].mean(1, keepdims=True) + inputs["infrared"]) / 2
    # float32 sums of three values, in the same order: equal to the last bit or nearly so.
    assert np.allclose(outputs["fused"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("graphs", [True, False])
def test_run(bench: Bench, graphs: bool) -> None:
    backend = bench.load(graphs=graphs)
    for seed in range(3):
        inputs = planes(seed=seed)
        assert_fused(backend.run(inputs), inputs)
    buffers = backend.buffers({name: array.shape for name, array in inputs.items()})
    for name, array in planes(seed=9).items():
        buffers[name][...] = array
    assert_fused(backend.run(buffers), planes(seed=9))
    # The first call is plain; the second captures the graph, proves it by one replay, and uses it.
    assert bench.cuda.launches == (4 if graphs else 0)
    backend.close()


def test_steady_state_neither_allocates_nor_waits_more_than_once(bench: Bench) -> None:
    backend = bench.load()
    for _ in range(2):
        backend.run(planes())
    before = bench.cuda.allocations, bench.cuda.synchronisations, bench.library.enqueues, len(bench.cuda.graphs)
    for seed in range(20):
        backend.run(planes(seed=seed))
    after = bench.cuda.allocations, bench.cuda.synchronisations, bench.library.enqueues, len(bench.cuda.graphs)
    assert np.subtract(after, before).tolist() == [0, 20, 0, 0]
    backend.close()


def test_the_graph_holds_the_whole_step(bench: Bench) -> None:
    backend = bench.load()
    backend.run(planes())
    assert not bench.cuda.graphs  # a shape that comes once needs none
    backend.run(planes())
    assert [graph.nodes for graph in bench.cuda.graphs] == [4]  # two copies in, the network, one copy out
    backend.close()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("capture_is_empty", "the captured graph has 0 operations, at least 4 are needed"),
        ("replay_is_stale", "a replay differs from a plain call by .* in fused"),
        ("capture_fails", "operation not permitted"),
    ],
)
def test_a_graph_without_proof_is_not_used(
    bench: Bench, caplog: pytest.LogCaptureFixture, fault: str, sentence: str
) -> None:
    setattr(bench.cuda, fault, True)
    backend = bench.load()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_fused(backend.run(planes()), planes())
    assert any(graph.closed for graph in bench.cuda.graphs) or fault == "capture_fails"
    launches = bench.cuda.launches
    assert_fused(backend.run(planes(seed=1)), planes(seed=1))
    assert bench.cuda.launches == launches
    assert "fusion.engine runs without a CUDA graph" in caplog.text
    assert __import__("re").search(sentence, caplog.text)
    backend.close()


def test_kernels_that_are_not_exactly_repeatable_keep_their_graph(bench: Bench) -> None:
    bench.library.noise = 0.05
    backend = bench.load()
    for _ in range(2):
        backend.run(planes())
    launches = bench.cuda.launches
    backend.run(planes())
    assert bench.cuda.launches == launches + 1
    backend.close()


def test_a_library_that_captures_by_itself(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.library.is_capturable = False
    backend = bench.load()
    with caplog.at_level(logging.INFO):
        for seed in range(3):
            assert_fused(backend.run(planes(seed=seed)), planes(seed=seed))
    assert [context.own_graph for context in bench.library.contexts] == [True, False]
    assert not bench.cuda.graphs
    assert "the library captures by itself" in caplog.text
    backend.close()


def test_shapes_are_kept_and_the_oldest_makes_room(bench: Bench) -> None:
    backend = bench.load(kept_shapes=2)
    for height in (32, 32, 16, 16, 24, 24, 32, 32, 24, 8):
        assert_fused(backend.run(planes(height)), planes(height))
    assert len(bench.cuda.graphs) == 4  # 32, 16, 24, and 32 again; 8 came once
    assert [graph.closed for graph in bench.cuda.graphs] == [True, True, False, True]
    assert bench.library.warmed_up == 5
    backend.close()


def test_activation_memory_is_shared_and_grows(bench: Bench) -> None:
    backend = bench.load()
    for height in (32, 16, 32, 16):
        backend.run(planes(height))
    assert len({context.activations[0] for context in bench.library.contexts}) == 1
    backend.run(planes(64))  # needs more: the graphs that know the old address are given up
    assert [graph.closed for graph in bench.cuda.graphs] == [True, True]
    assert_fused(backend.run(planes(32)), planes(32))
    assert bench.library.contexts[-1].activations == bench.library.contexts[-2].activations
    backend.close()


def test_the_nearest_profile_is_taken(make: Any) -> None:
    profiles = (((8, 8), (256, 256), (512, 512)), ((16, 24), (16, 24), (16, 24)), ((8, 8), (40, 40), (64, 64)))
    bench = Bench(make, profiles)
    backend = bench.load()
    for size, profile in (((16, 24), 1), ((32, 32), 2), ((256, 512), 0)):
        backend.run(planes(*size))
        assert bench.library.contexts[-1].profile == profile
    with pytest.raises(InputError, match=r"fusion\.engine has no optimisation profile for visible \(1, 3, 520, 8\)"):
        backend.run(planes(520, 8))
    backend.close()


def test_out_of_memory_says_the_need_and_what_is_free(bench: Bench) -> None:
    bench.cuda.total = 20_000_000
    backend = bench.load()
    assert_fused(backend.run(planes()), planes())
    with pytest.raises(
        DeviceError, match=r"out of memory on Fake 4090: activation memory needs 26 MB, 20 MB of 20 MB"
    ) as got:
        backend.run(planes(512, 512))
    assert "--lean" in got.value.hint
    assert_fused(backend.run(planes()), planes())  # smaller images still work
    backend.close()


def test_out_of_memory_of_a_tensor(bench: Bench) -> None:
    bench.cuda.total = 100 * 16 * 24 + 3 * 4 * 16 * 24
    backend = bench.load()
    with pytest.raises(DeviceError, match=r"tensor infrared \(1, 1, 16, 24\) needs"):
        backend.run(planes())
    assert len(bench.cuda.live) == 1  # the activation memory; what the failed step had is back
    backend.close()


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ("profile", "refuses its optimisation profile 0"),
        ("shape", r"refuses the shape \(1, 3, 16, 24\) for visible"),
        ("infer", "does not know the shape of fused"),
        ("address", "refuses an address for visible"),
        ("enqueue", r"fusion\.engine does not run: IExecutionContext::enqueueV3: Error Code 1"),
        ("context", "out of memory on Fake 4090: running the engine needs more than there is"),
    ],
)
def test_what_the_library_refuses_is_said(bench: Bench, refusal: str, sentence: str) -> None:
    bench.library.refuse = refusal
    backend = bench.load()
    with pytest.raises(DeviceError, match=sentence):
        backend.run(planes())
    bench.library.refuse = ""
    assert_fused(backend.run(planes()), planes())
    backend.close()


def test_a_refused_call_in_steady_state(bench: Bench) -> None:
    backend = bench.load(graphs=False)
    backend.run(planes())
    bench.library.refuse_enqueue = bench.library.enqueues + 1
    with pytest.raises(DeviceError, match="does not run"):
        backend.run(planes(seed=1))
    assert_fused(backend.run(planes(seed=2)), planes(seed=2))
    backend.close()


def test_a_gpu_that_fails_once_costs_one_pair(bench: Bench, noise: Any) -> None:
    pairs = [(noise((16, 24, 3), seed=seed), noise((16, 24), seed=seed + 50)) for seed in range(6)]
    with bench.fuser() as fuser:
        alone = [fuser(*pair, "gray") for pair in pairs]
        bench.cuda.failing_waits = {bench.cuda.synchronisations + 3}
        outcomes = list(fuser.stream(pairs, "gray"))
    assert [outcome.error is None for outcome in outcomes].count(False) == 1
    for outcome, expected in zip(outcomes, alone, strict=True):
        if outcome.error is None:
            assert np.array_equal(outcome.result(), expected)
        else:
            with pytest.raises(DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
                outcome.result()


def test_a_gpu_that_stays_broken_is_said_once_per_pair_and_closed(
    bench: Bench, noise: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [(noise((16, 24, 3)), noise((16, 24)))] * 4
    with bench.fuser() as fuser:
        for pair in pairs:
            fuser(*pair)
        bench.cuda.failing_waits = set(range(bench.cuda.synchronisations + 1, 10_000))
        outcomes = list(fuser.stream(pairs))
    assert all(isinstance(outcome.error, DeviceError) for outcome in outcomes)
    assert "closing after a failure of the GPU" in caplog.text


def test_an_engine_that_does_not_fit(bench: Bench) -> None:
    bench.library.refuse = "plan"
    with pytest.raises(DeviceError) as caught:
        bench.load()
    assert caught.value.problem == (
        "fusion.engine was built with TensorRT 10.16.1 for NVIDIA A100; this machine has FakeRT 11.4 and "
        "Fake 4090 (sm89): expecting version 11.4"
    )
    assert caught.value.hint == "build it again"


def test_an_engine_of_another_manifest(bench: Bench) -> None:
    bench.engine.dtype = "HALF"
    with pytest.raises(ManifestError, match=r"names the input visible \(float32\), the engine has visible \(float16\)"):
        bench.load()


def test_threads_work_side_by_side(bench: Bench, noise: Any) -> None:
    pairs = [(noise((16, 24, 3), seed=seed), noise((16, 24), seed=seed + 50)) for seed in range(6)]
    with bench.fuser(contexts=3) as fuser:
        alone = [fuser(*pair, "gray") for pair in pairs]
        wrong: list[int] = []

        def work(place: int) -> None:
            for _ in range(20):
                if not np.array_equal(fuser(*pairs[place], "gray"), alone[place]):
                    wrong.append(place)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(bench.cuda.streams) == 3


def test_parts(bench: Bench) -> None:
    backend = bench.load()
    # The fake clock counts operations.
    assert backend.parts_ms(planes()) == {"copy_in": 2.0, "compute": 1.0, "copy_out": 1.0}
    backend.close()


def test_options() -> None:
    with pytest.raises(InputError, match="at least one shape"):
        EngineOptions(kept_shapes=0)


def gpu_planes(bench: Bench, **arguments: int) -> tuple[dict[str, ForeignImage], dict[str, np.ndarray]]:
    inputs = planes(**arguments)
    return {name: ForeignImage(bench.cuda, array) for name, array in inputs.items()}, inputs


def release(*arrays: Any) -> None:
    for array in arrays:
        (array.block if isinstance(array, ForeignImage) else array._block).close()


def test_gpu_arrays_go_in_and_come_out(bench: Bench) -> None:
    backend = bench.load()
    for seed in range(3):
        arrays, inputs = gpu_planes(bench, seed=seed)
        pinned = sum(block.pinned for block in bench.cuda.live.values())
        fused = backend.run_on_device(arrays, "fused")
        assert sum(block.pinned for block in bench.cuda.live.values()) == pinned == 0
        assert isinstance(fused, DeviceArray)
        assert is_on_gpu(fused)
        assert fused.__cuda_array_interface__["shape"] == (1, 1, 16, 24)
        assert fused.__cuda_array_interface__["data"] == (fused.address, False)
        assert_fused({"fused": np.from_dlpack(fused)}, inputs)
        release(fused, *arrays.values())
    assert [graph.nodes for graph in bench.cuda.graphs] == [1]
    backend.close()


def test_gpu_arrays_on_the_callers_stream(bench: Bench) -> None:
    backend = bench.load()
    own = bench.cuda.stream()
    arrays, inputs = gpu_planes(bench)
    for _ in range(2):  # make the step, then its graph
        release(backend.run_on_device(arrays, "fused"))
    waits = bench.cuda.synchronisations
    out = ForeignImage(bench.cuda, np.zeros((1, 1, 16, 24), np.float32))
    assert backend.run_on_device(arrays, "fused", stream=own.handle, out=out) is None
    assert bench.cuda.synchronisations == waits
    assert not out.values.any()  # nothing has happened yet
    # The next call on another stream uses the same buffers: it must come after.
    later, later_inputs = gpu_planes(bench, seed=5)
    host = {name: array.copy() for name, array in later_inputs.items()}
    assert_fused(backend.run(host), later_inputs)
    own.synchronize()
    assert_fused({"fused": out.values}, inputs)
    release(out, *arrays.values(), *later.values())
    backend.close()


@pytest.mark.parametrize("fault", ["memory", "enqueue"])
def test_a_failure_on_the_callers_stream_spoils_no_later_call(bench: Bench, fault: str) -> None:
    """What was enqueued there before the failure still reads this worker's memory."""
    backend = bench.load(graphs=False)
    own = bench.cuda.stream()
    arrays, _ = gpu_planes(bench)
    release(backend.run_on_device(arrays, "fused"))
    live, total = len(bench.cuda.live), bench.cuda.total
    if fault == "memory":
        bench.cuda.total -= bench.cuda.memory()[0]
        sentence = r"out of memory on Fake 4090: output fused needs"
    else:
        bench.library.refuse_enqueue = bench.library.enqueues + 1
        sentence = "does not run"
    with pytest.raises(DeviceError, match=sentence):
        backend.run_on_device(arrays, "fused", stream=own.handle)
    assert len(bench.cuda.live) == live
    bench.cuda.total = total
    later, later_inputs = gpu_planes(bench, seed=5)
    fused = backend.run_on_device(later, "fused")
    assert_fused({"fused": np.from_dlpack(fused)}, later_inputs)
    assert not own.waiting, "the later call came after what was left on the caller's stream"
    release(fused, *arrays.values(), *later.values())
    backend.close()


def test_gpu_arrays_that_do_not_fit(bench: Bench) -> None:
    backend = bench.load()
    arrays, _ = gpu_planes(bench)
    wrong = ForeignImage(bench.cuda, np.zeros((1, 3, 16, 24), np.uint8))
    with pytest.raises(InputError, match="input visible on the GPU is uint8, the engine takes float32") as caught:
        backend.run_on_device({**arrays, "visible": wrong}, "fused")
    assert "--io image" in caught.value.hint
    with pytest.raises(InputError, match=r"out is uint8 \(1, 3, 16, 24\), the engine gives float32 \(1, 1, 16, 24\)"):
        backend.run_on_device(arrays, "fused", out=wrong)
    release(wrong, *arrays.values())
    backend.close()


def test_a_fuser_takes_gpu_images(make: Any, noise: Any) -> None:
    bench = Bench(make, image="gray")
    visible, infrared = noise((16, 24, 3)), noise((16, 24), seed=1)
    with bench.fuser() as fuser:
        expected = fuser(visible, infrared, "gray")
        one, two = (ForeignImage(bench.cuda, array) for array in (visible, infrared))
        fused = fuser(one, two)
        assert fused.shape == (16, 24)
        assert np.array_equal(np.from_dlpack(fused), expected)
        batch = [ForeignImage(bench.cuda, array[None]) for array in (visible, infrared)]
        batched = fuser(*batch)
        assert batched.shape == (1, 16, 24)
        out = ForeignImage(bench.cuda, np.zeros((16, 24), np.uint8))
        assert fuser(one, two, out=out) is out
        assert np.array_equal(out.values, expected)
        with pytest.raises(InputError, match="one image is on the GPU"):
            fuser(one, infrared)
        with pytest.raises(InputError, match="on the GPU the artifact gives gray"):
            fuser(one, two, "ycbcr")
        release(one, two, fused, batched, out, *batch)
    assert not bench.cuda.live


def test_gpu_images_need_a_gpu_backend(make: Any, noise: Any) -> None:
    from upfusion.runtime.backends.null import NullBackend

    image = ForeignImage(FakeCuda(), noise((16, 24, 3)))
    with pytest.raises(InputError, match="takes arrays in host memory"):
        Fuser(NullBackend(make.tensor_contract()), make.tensor_contract())(image, image)


def test_an_engine_that_takes_decisions(make: Any) -> None:
    """Decisions go in with the images, and the proof of the CUDA graph tries valid ones only."""
    bench = Bench(make)
    order = TensorSpec(name="scpm.order", dtype="int64", shape=(1, 3), meaning="channel indices")
    bench.contract = dataclasses.replace(bench.contract, decision_inputs=(order,))
    bench.manifest = dataclasses.replace(bench.manifest, contract=bench.contract)
    bench.library.engine = FakeEngine(bench.engine.profiles, given=True)
    random = np.random.default_rng(4)
    with bench.fuser() as fuser:
        fuser.warm_up()
        for channel in (2, 0, 1, 1):
            visible, infrared = random.integers(0, 256, (8, 16, 3), np.uint8), np.zeros((8, 16), np.uint8)
            fused = fuser.given(visible, infrared, {"scpm.order": np.array([[channel, 0, 0]])}, "gray")
            # float32 planes and back: half of a byte, rounded to even, may fall on either side.
            assert np.abs(fused - visible[..., channel] / 2).max() <= 0.5 + 1e-3
    assert [graph.nodes for graph in bench.cuda.graphs] == [5] * 2  # three copies in, the network, one copy out
    assert bench.cuda.launches > 4
    assert not bench.cuda.live
