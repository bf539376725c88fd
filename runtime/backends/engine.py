"""What TensorRT and TensorRT-RTX engines have in common: contexts, buffers, captured graphs, one step per shape.

A worker has one stream and one block of activation memory. For each set of input shapes it keeps a step: an
execution context with fixed buffers, and a CUDA graph of the whole way in and out that is replayed. Steps of one
worker share the activation memory, because they never run at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from upfusion.runtime.backends.base import Arrays, Shape
from upfusion.runtime.cuda import Block, CapturedGraph, Cuda, Event, ForeignArray, HostBlock, Stream, out_of_memory
from upfusion.runtime.errors import DeviceError, InputError, ManifestError, UPFusionError
from upfusion.runtime.gpu_arrays import DeviceArray
from upfusion.runtime.manifest import Manifest

log = logging.getLogger(__name__)

HALF_A_LEVEL = 0.5 / 255
"""A replay may differ from a plain call by this much: kernels that add in any order are not exactly repeatable."""

_TYPES: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
"""Names in the libraries' enumeration of types -> numpy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine runs."""

    graphs: bool = True
    """Capture copy in, network and copy out as one CUDA graph per shape, and replay it."""
    kept_shapes: int = 4
    """Shapes whose buffers and graphs are kept; the one used longest ago makes room."""
    cache: Path | None = None
    """TensorRT-RTX: where compiled kernels are kept between runs; by default beside the engine."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: no shape could be kept.
        """
        if self.kept_shapes < 1:
            raise InputError(f"kept_shapes={self.kept_shapes}: at least one shape must be kept", "use 1 or more")


class Context(Protocol):
    """The part of ``IExecutionContext`` that is used. Its setters answer False instead of raising."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose the profile; shapes must be set afterwards."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Fix the shape of an input."""

    def infer_shapes(self) -> list[str]:
        """Return the tensors whose shape is still unknown."""

    def get_tensor_shape(self, name: str) -> Any:
        """Return a shape in TensorRT's own type."""

    def update_device_memory_size_for_shapes(self) -> int:
        """Return the bytes of activation memory that these shapes need."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Hand in the activation memory."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Say where a tensor lies."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue the network."""


class Engine(Protocol):
    """The part of ``ICudaEngine`` that is used."""

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs together."""

    @property
    def num_optimization_profiles(self) -> int:
        """At least one."""

    def get_tensor_name(self, index: int) -> str:
        """Return the name of an input or output."""

    def get_tensor_mode(self, name: str) -> Any:
        """Return ``INPUT`` or ``OUTPUT`` of the library's enumeration."""

    def get_tensor_dtype(self, name: str) -> Any:
        """Return a member of the library's enumeration of types."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Any]:
        """Return the smallest, the best and the largest shape of an input."""


class Library(ABC):
    """TensorRT or TensorRT-RTX: what they do differently."""

    title: str
    """Name and version."""

    @abstractmethod
    def open(self, path: Path, manifest: Manifest, cuda: Cuda) -> Engine:
        """Return the engine of a plan.

        Raises:
            DeviceError: it does not fit this library or this GPU.
        """

    @abstractmethod
    def context(self, engine: Any, *, own_graph: bool) -> Context | None:
        """Return an execution context without activation memory; ``own_graph``: the caller captures its calls."""

    @abstractmethod
    def capturable(self, context: Any, stream: Stream) -> bool:
        """Whether calls of a context that ran once can be captured by the caller."""

    @abstractmethod
    def warmed(self) -> None:
        """Take note that kernels for a new shape are there."""

    @abstractmethod
    def complaints(self) -> str:
        """Return the library's errors since the last call, or nothing."""


class EngineBackend:
    """A loaded engine with one worker. Not thread-safe; :meth:`another` makes a worker for another thread."""

    def __init__(self, path: Path, manifest: Manifest, library: Library, cuda: Cuda, options: EngineOptions) -> None:
        """Load the plan, whose digest the caller has checked.

        Raises:
            DeviceError: it does not fit this machine, or memory is short.
            ManifestError: the plan has other inputs and outputs than its manifest.
        """
        cuda.activate()
        self._loaded = _Loaded(path, manifest, library, library.open(path, manifest, cuda), cuda, options)
        self.device = f"{cuda.name} ({library.title})"
        self._worker = _Worker(self._loaded)

    def another(self) -> EngineBackend:
        """Return a further worker on the same engine: a stream, buffers and activation memory of its own."""
        twin = object.__new__(EngineBackend)
        twin._loaded, twin.device = self._loaded, self.device
        self._loaded.cuda.activate()
        twin._worker = _Worker(self._loaded)
        return twin

    def buffers(self, shapes: Mapping[str, Shape]) -> Arrays:
        """Return page-locked input arrays of these shapes; :meth:`run` copies from them to the GPU directly."""
        return self._worker.step(shapes, on_device=False).inputs

    def run(self, inputs: Arrays) -> Arrays:
        """Return all outputs, in page-locked arrays that the next call with these shapes overwrites.

        Raises:
            DeviceError: the GPU failed, or memory is short for a new shape.
        """
        step = self._worker.step({name: array.shape for name, array in inputs.items()}, on_device=False)
        for name, buffer in step.inputs.items():
            if inputs[name] is not buffer:
                np.copyto(buffer, inputs[name], casting="no")
        self._worker.settle()
        step.launch(self._worker.stream)
        self._worker.stream.synchronize()
        return step.outputs

    def run_on_device(
        self,
        inputs: Mapping[str, object],
        output: str,
        *,
        single: bool = False,
        stream: object = None,
        out: object = None,
    ) -> DeviceArray | None:
        """Return one output on the GPU for inputs on the GPU, without a copy through the host.

        ``single``: the arrays lack the batch axis, and so does the result. With ``stream`` (a number, or anything with
        ``__cuda_stream__``) everything is enqueued there and nothing waits; without it the result is complete on
        return. With ``out`` the result is written there and None is returned.

        Raises:
            InputError: arrays of another type than the engine's, on another GPU or with gaps, or an ``out`` of
                another size.
            DeviceError: the GPU failed.
        """
        cuda, worker = self._loaded.cuda, self._worker
        cuda.activate()
        queue = worker.stream if stream is None else cuda.foreign_stream(stream)
        arrays = {name: cuda.foreign_array(array, queue) for name, array in inputs.items()}
        for name, array in arrays.items():
            self._check_type(name, array)
        axis = (1,) if single else ()
        step = worker.step({name: (*axis, *array.shape) for name, array in arrays.items()}, on_device=True)
        shape, dtype = step.shapes[output]
        shape = shape[len(axis) :]
        target = None if out is None else cuda.foreign_array(out, queue)
        if target is not None and (target.shape, target.dtype) != (shape, dtype):
            raise InputError(f"out is {target.dtype} {target.shape}, the engine gives {dtype} {shape}", "leave it out")
        if worker.last is not None:
            queue.wait(worker.last)
        for name, array in arrays.items():
            queue.copy(array.block, step.device[name])
        step.launch(queue)
        block = cuda.allocate(step.device[output].size, queue, f"output {output}") if target is None else target.block
        queue.copy(step.device[output], block)
        worker.last = queue.record()
        if stream is None:
            queue.synchronize()
        return DeviceArray(cuda, block, shape, dtype, queue.handle) if target is None else None

    def parts_ms(self, inputs: Arrays) -> dict[str, float]:
        """Run once without a graph and return the device's time for copy in, compute and copy out, in milliseconds."""
        worker = self._worker
        step = worker.step({name: array.shape for name, array in inputs.items()}, on_device=False)
        for name, buffer in step.inputs.items():
            if inputs[name] is not buffer:
                np.copyto(buffer, inputs[name], casting="no")
        worker.settle()
        events = [worker.stream.record(timed=True)]
        for part in (step.copy_in, step.compute, step.copy_out):
            part(worker.stream)
            events.append(worker.stream.record(timed=True))
        worker.stream.synchronize()
        names = ("copy_in", "compute", "copy_out")
        elapsed = self._loaded.cuda.elapsed_ms
        return {name: elapsed(*pair) for name, pair in zip(names, itertools.pairwise(events), strict=True)}

    def close(self) -> None:
        """Free this worker's memory. The engine goes with its last worker."""
        self._loaded.cuda.activate()
        self._worker.close()

    def _check_type(self, name: str, array: ForeignArray) -> None:
        """Raise unless an array has the type of the engine's input.

        Raises:
            InputError: another type, or no such input.
        """
        expected = self._loaded.dtypes.get(name) if name in self._loaded.inputs else None
        if array.dtype != expected:
            raise InputError(
                f"input {name} on the GPU is {array.dtype}, the engine takes {expected}",
                "convert it on the GPU, or load an engine that was exported with --io image for uint8",
            )


class _Loaded:
    """The engine and what is known about its tensors; shared by all workers."""

    def __init__(
        self, path: Path, manifest: Manifest, library: Library, engine: Engine, cuda: Cuda, options: EngineOptions
    ) -> None:
        self.path, self.library, self.engine, self.cuda, self.options = path, library, engine, cuda, options
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if engine.get_tensor_mode(name).name == "INPUT")
        self.outputs = tuple(name for name in names if name not in self.inputs)
        self.dtypes = {name: np.dtype(_TYPES[engine.get_tensor_dtype(name).name]) for name in names}
        for side, specs, found in (
            ("inputs", manifest.contract.inputs, self.inputs),
            ("outputs", manifest.contract.outputs, self.outputs),
        ):
            for spec in specs:
                if spec.name not in found or self.dtypes[spec.name] != np.dtype(spec.dtype):
                    raise ManifestError(
                        f"{path}: the manifest names the {side[:-1]} {spec.name} ({spec.dtype}), the engine has "
                        + ", ".join(f"{name} ({self.dtypes[name]})" for name in found),
                        "build it again with upfusion build",
                    )

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """Return the number of the optimisation profile that is tuned nearest to these shapes.

        Raises:
            InputError: none holds them.
        """
        distances = {}
        for profile in range(self.engine.num_optimization_profiles):
            limits = {name: self.engine.get_tensor_profile_shape(name, profile) for name in shapes}
            if all(len(shape) == len(limits[name][0]) for name, shape in shapes.items()) and all(
                low <= size <= high
                for name, shape in shapes.items()
                for low, size, high in zip(limits[name][0], shape, limits[name][2], strict=True)
            ):
                distances[profile] = sum(
                    abs(int(np.prod(shape)) - int(np.prod(tuple(limits[name][1])))) for name, shape in shapes.items()
                )
        if not distances:
            raise InputError(
                f"{self.path.name} has no optimisation profile for {_listed(shapes)}",
                "export and build it for this size and batch",
            )
        return min(distances, key=distances.__getitem__)


class _Worker:
    """One stream, one block of activation memory, and a step per set of shapes."""

    def __init__(self, loaded: _Loaded) -> None:
        self._loaded = loaded
        self._steps: OrderedDict[tuple[bool, tuple[Shape, ...]], _Step] = OrderedDict()
        self._activations: Block | None = None
        self.stream = loaded.cuda.stream()
        self.last: Event | None = None
        """Where somebody else's stream was when it had used this worker's memory."""

    def step(self, shapes: Mapping[str, Shape], *, on_device: bool) -> _Step:
        """Return the step for these input shapes, made on first use. The calling thread gets the device."""
        self._loaded.cuda.activate()
        key = (on_device, tuple(shapes[name] for name in self._loaded.inputs))
        step = self._steps.get(key)
        if step is not None:
            self._steps.move_to_end(key)
            return step
        self.settle(wait=True)
        while len(self._steps) >= self._loaded.options.kept_shapes:
            self._steps.popitem(last=False)[1].close()
        step = _Step(self._loaded, self, shapes, on_device=on_device)
        self._steps[key] = step
        return step

    def settle(self, *, wait: bool = False) -> None:
        """Order this worker's stream behind what others enqueued with its memory; ``wait``: until it is done."""
        if self.last is not None:
            self.stream.wait(self.last)
            self.last = None
        if wait:
            self.stream.synchronize()

    def activations(self, size: int) -> Block:
        """Return activation memory of at least ``size`` bytes.

        A larger block than before ends the steps that know the old one's address.
        """
        if self._activations is None or self._activations.size < size:
            self._drop_steps()
            if self._activations is not None:
                log.info("activation memory grows from %d to %d bytes", self._activations.size, size)
                self._activations.close()
                self._activations = None
            self._activations = self._loaded.cuda.allocate(size, self.stream, "activation memory")
        return self._activations

    def _drop_steps(self) -> None:
        """Close every step."""
        while self._steps:
            self._steps.popitem()[1].close()

    def close(self) -> None:
        """Give all memory back when the GPU is done with it."""
        self.settle(wait=True)
        self._drop_steps()
        if self._activations is not None:
            self._activations.close()
            self._activations = None


class _Step:
    """Copy in, compute, copy out for one set of input shapes, at fixed addresses."""

    def __init__(self, loaded: _Loaded, worker: _Worker, shapes: Mapping[str, Shape], *, on_device: bool) -> None:
        self._loaded, self._worker = loaded, worker
        self._graph: CapturedGraph | None = None
        self.device: dict[str, Block] = {}
        self._host: dict[str, HostBlock] = {}
        self.inputs: dict[str, npt.NDArray[Any]] = {}
        self.outputs: dict[str, npt.NDArray[Any]] = {}
        self.shapes: dict[str, tuple[Shape, np.dtype[Any]]] = {}
        self._on_device = on_device
        try:
            own_graph = loaded.options.graphs
            self._context = self._prepared_context(shapes, own_graph=own_graph)
            self._allocate()
            self._warm_up()
            if own_graph and not loaded.library.capturable(self._context, worker.stream):
                log.info("%s was not built for capture by the caller: the library captures by itself", loaded.path.name)
                own_graph = False
                self._context = self._prepared_context(shapes, own_graph=False)
                self._address()
                self._warm_up()
            loaded.library.warmed()
            if own_graph:
                self._capture()
            if on_device:
                self._drop_host()
        except BaseException:
            with contextlib.suppress(UPFusionError):  # the first error is the one to tell
                worker.stream.synchronize()  # copies may be under way to what is given back now
            self.close()
            raise

    def launch(self, stream: Stream) -> None:
        """Enqueue the step on a stream: as a graph where there is one."""
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            self._enqueue(stream)

    def copy_in(self, stream: Stream) -> None:
        """Enqueue the copies of the inputs to the device."""
        for name in self.inputs:
            stream.copy(self._host[name], self.device[name])

    def compute(self, stream: Stream) -> None:
        """Enqueue the network.

        Raises:
            DeviceError: the library refuses.
        """
        if not self._context.execute_async_v3(stream.handle):
            raise self._failure("does not run")

    def copy_out(self, stream: Stream) -> None:
        """Enqueue the copies of the outputs to the host."""
        for name in self.outputs:
            stream.copy(self.device[name], self._host[name])

    def close(self) -> None:
        """Give the memory back; nothing of the step may be under way."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._drop_host()
        while self.device:
            self.device.popitem()[1].close()

    def _drop_host(self) -> None:
        """Give the page-locked buffers back."""
        self.inputs.clear()
        self.outputs.clear()
        while self._host:
            self._host.popitem()[1].close()

    def _enqueue(self, stream: Stream) -> None:
        """Enqueue the step without a graph."""
        self.copy_in(stream)
        self.compute(stream)
        self.copy_out(stream)

    def _prepared_context(self, shapes: Mapping[str, Shape], *, own_graph: bool) -> Context:
        """Return a context that knows its profile, its shapes and its activation memory.

        Raises:
            DeviceError: the library refuses, or memory is short.
        """
        loaded, stream = self._loaded, self._worker.stream
        profile = loaded.profile_for(shapes)
        context = loaded.library.context(loaded.engine, own_graph=own_graph)
        if context is None:
            raise self._failure("gives no execution context")
        if not context.set_optimization_profile_async(profile, stream.handle):
            raise self._failure(f"refuses its optimisation profile {profile}")
        stream.synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failure(f"refuses the shape {shape} for {name}")
        missing = context.infer_shapes()
        if missing:
            raise self._failure(f"does not know the shape of {', '.join(missing)}")
        size = context.update_device_memory_size_for_shapes()
        block = self._worker.activations(max(size, 1))
        context.set_device_memory(block.address, block.size)
        for name in (*loaded.inputs, *loaded.outputs):
            self.shapes[name] = (tuple(int(length) for length in context.get_tensor_shape(name)), loaded.dtypes[name])
        return context

    def _allocate(self) -> None:
        """Allocate a block on the device and one on the host for each tensor."""
        cuda = self._loaded.cuda
        for name, (shape, dtype) in self.shapes.items():
            count = int(np.prod(shape))
            size = max(count * dtype.itemsize, 1)
            self.device[name] = cuda.allocate(size, self._worker.stream, f"tensor {name} {shape}")
            self._host[name] = cuda.allocate_pinned(size)
            array = self._host[name].bytes[: count * dtype.itemsize].view(dtype).reshape(shape)
            array[...] = 0
            (self.inputs if name in self._loaded.inputs else self.outputs)[name] = array
        self._address()

    def _address(self) -> None:
        """Tell the context where its tensors are."""
        for name, block in self.device.items():
            if not self._context.set_tensor_address(name, block.address):
                raise self._failure(f"refuses an address for {name}")

    def _warm_up(self) -> None:
        """Run once without a graph: kernels are loaded or compiled, and lazily made resources exist."""
        self._enqueue(self._worker.stream)
        self._worker.stream.synchronize()

    def _capture(self) -> None:
        """Capture the step and prove the graph; without a proof the step goes on without a graph and says so."""
        work = self.compute if self._on_device else self._enqueue
        try:
            graph = self._worker.stream.capture(work)
        except UPFusionError as error:
            log.warning("%s runs without a CUDA graph: %s", self._loaded.path.name, error.problem)
            self._warm_up()  # a capture that failed must not have left anything half set
            return
        self._graph = graph
        flaw = self._flaw(graph)
        if flaw:
            self._graph = None
            graph.close()
            log.warning("%s runs without a CUDA graph: %s", self._loaded.path.name, flaw)

    def _flaw(self, graph: CapturedGraph) -> str:
        """Return what is wrong with a captured graph, or nothing.

        A capture can succeed and be empty, or keep addresses of something else: the operations are counted, and a
        replay on new data is compared with a plain call.
        """
        least = 1 if self._on_device else len(self.inputs) + len(self.outputs) + 1
        if graph.nodes < least:
            return f"the captured graph has {graph.nodes} operations, at least {least} are needed"
        random = np.random.default_rng(0)
        for array in self.inputs.values():
            values = random.random(array.shape, np.float32)
            array[...] = values if array.dtype.kind == "f" else values * 255
        plain = self._results_of(self._enqueue)
        replayed = self._results_of(self._replay)
        for name, result in replayed.items():
            difference = _largest_difference(result, plain[name])
            if difference > (HALF_A_LEVEL if result.dtype.kind == "f" else 0):
                again = self._results_of(self._enqueue)
                if difference > 2 * _largest_difference(again[name], plain[name]):
                    return f"a replay differs from a plain call by {difference:g} in {name}"
        return ""

    def _replay(self, stream: Stream) -> None:
        """Launch the graph, with the copies that it leaves out."""
        if self._on_device:
            self.copy_in(stream)
        self.launch(stream)
        if self._on_device:
            self.copy_out(stream)

    def _results_of(self, launch: Callable[[Stream], None]) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the outputs after a launch; what was in them before is spoilt first."""
        for name in self.outputs:
            self._host[name].bytes[...] ^= 0x55
            self._worker.stream.copy(self._host[name], self.device[name])
        launch(self._worker.stream)
        self._worker.stream.synchronize()
        return {name: array.copy() for name, array in self.outputs.items()}

    def _failure(self, what: str) -> DeviceError:
        """Return an error with what the library said."""
        said = self._loaded.library.complaints()
        if "out of memory" in said.lower() or "outofmemory" in said.lower():
            return out_of_memory("running the engine", None, self._loaded.cuda)
        return DeviceError(
            f"{self._loaded.path.name} {what}" + (f": {said}" if said else ""),
            "upfusion doctor; if it comes again, build the engine again on this machine",
        )


def _largest_difference(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return max |first - second|; infinity where only one of them is a number."""
    if first.size == 0:
        return 0.0
    difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
    difference[np.isnan(first.astype(np.float64)) & np.isnan(second.astype(np.float64))] = 0
    return float(np.nan_to_num(difference, nan=np.inf).max())


def _listed(shapes: Mapping[str, Shape]) -> str:
    """Return shapes by name."""
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
