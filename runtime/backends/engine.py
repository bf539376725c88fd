"""TensorRT and TensorRT-RTX engines: one engine, workers for threads, a step per set of input shapes.

A worker has one stream and one block of activation memory. Its steps share that block, because they never run at the
same time; each has an execution context of its own, as captured graphs ask for.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from upfusion.runtime.backends.base import Arrays, Shape
from upfusion.runtime.backends.engine_library import EngineOptions, Library
from upfusion.runtime.backends.engine_step import Step
from upfusion.runtime.backends.loaded_engine import LoadedEngine
from upfusion.runtime.cuda import Block, Cuda, Event, ForeignArray
from upfusion.runtime.errors import DeviceError, InputError
from upfusion.runtime.gpu_arrays import DeviceArray
from upfusion.runtime.manifest import Manifest

log = logging.getLogger(__name__)


class EngineBackend:
    """A loaded engine with one worker. Not thread-safe; :meth:`another` makes a worker for another thread."""

    def __init__(self, path: Path, manifest: Manifest, library: Library, cuda: Cuda, options: EngineOptions) -> None:
        """Load the plan, whose digest the caller has checked.

        Raises:
            DeviceError: it does not fit this machine, or memory is short.
            ManifestError: the plan has other inputs and outputs than its manifest.
        """
        cuda.activate()
        self._loaded = LoadedEngine(path, manifest, library, library.open(path, manifest, cuda), cuda, options)
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
        step = self._worker.step(shapes, on_device=False)
        step.ready()
        return step.inputs

    def run(self, inputs: Arrays) -> Arrays:
        """Return all outputs, in page-locked arrays that the next call with these shapes overwrites.

        Raises:
            DeviceError: the GPU failed, or memory is short for a new shape.
        """
        step = self._filled(inputs)
        step.launch(self._worker.stream)
        self._worker.stream.synchronize()
        step.finished()
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
        worker.settle()
        step.ready()
        shape, dtype = step.shapes[output]
        shape = shape[len(axis) :]
        target = None if out is None else cuda.foreign_array(out, queue)
        if target is not None and (target.shape, target.dtype) != (shape, dtype):
            raise InputError(f"out is {target.dtype} {target.shape}, the engine gives {dtype} {shape}", "leave it out")
        block = cuda.allocate(step.device[output].size, queue, f"output {output}") if target is None else target.block
        queue.wait(worker.stream.record())
        try:
            for name, array in arrays.items():
                queue.copy(array.block, step.device[name])
            step.launch(queue)
            queue.copy(step.device[output], block)
        except BaseException:
            if target is None:
                block.close()
            raise
        finally:  # also if something was refused: what was enqueued before it uses this worker's memory
            worker.last = queue.record()
        if stream is None:
            queue.synchronize()
        return DeviceArray(cuda, block, shape, dtype, queue.handle) if target is None else None

    def parts_ms(self, inputs: Arrays) -> dict[str, float]:
        """Run once without a graph and return the device's time for copy in, compute and copy out, in milliseconds."""
        worker = self._worker
        step = self._filled(inputs)
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

    def _filled(self, inputs: Arrays) -> Step:
        """Return the step for these inputs with their values in its buffers, ready to launch."""
        step = self._worker.step({name: array.shape for name, array in inputs.items()}, on_device=False)
        foreign = [name for name, buffer in step.inputs.items() if inputs[name] is not buffer]
        if foreign:
            step.ready()  # not if the caller filled the buffers: a capture would spoil them
        for name in foreign:
            np.copyto(step.inputs[name], inputs[name], casting="no")
        self._worker.settle()
        return step

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


class _Worker:
    """One stream, one block of activation memory, and a step per set of shapes."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded = loaded
        self._steps: OrderedDict[tuple[bool, tuple[Shape, ...]], Step] = OrderedDict()
        self._activations: Block | None = None
        self.stream = loaded.cuda.stream()
        self.last: Event | None = None
        """Where somebody else's stream was when it had used this worker's memory."""

    def step(self, shapes: Mapping[str, Shape], *, on_device: bool) -> Step:
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
        with self._loaded.building:
            step = Step(self._loaded, self.stream, self._activation_memory, shapes, on_device=on_device)
        self._steps[key] = step
        return step

    def settle(self, *, wait: bool = False) -> None:
        """Order this worker's stream behind what others enqueued with its memory; ``wait``: until it is done."""
        if self.last is not None:
            self.stream.wait(self.last)
            self.last = None
        if wait:
            self.stream.synchronize()

    def _activation_memory(self, size: int) -> Block:
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
        """Give all memory back when the GPU is done with it.

        A GPU that has failed cannot be waited for: that is logged, so that the first error remains the one to tell.
        """
        try:
            self.settle(wait=True)
        except DeviceError as error:
            log.warning("closing after a failure of the GPU: %s", error.problem)
        self._drop_steps()
        if self._activations is not None:
            self._activations.close()
            self._activations = None
