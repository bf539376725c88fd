"""One step of an engine for one set of input shapes: fixed buffers, and a CUDA graph of it all once that is proven.

The first call of a shape runs plainly. The graph is captured when the shape comes a second time, so that a folder of
pictures that all differ in size does not pay for graphs that nobody replays.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from upfusion.runtime.backends.base import Shape
from upfusion.runtime.backends.engine_library import Context
from upfusion.runtime.backends.loaded_engine import LoadedEngine
from upfusion.runtime.cuda import Block, CapturedGraph, HostBlock, Stream
from upfusion.runtime.decisions import fill_natural
from upfusion.runtime.errors import UPFusionError

log = logging.getLogger(__name__)

HALF_A_LEVEL = 0.5 / 255
"""A replay may differ from a plain call by this much: kernels that add in any order are not exactly repeatable."""


class Step:
    """Copy in, compute, copy out at fixed addresses. With ``on_device`` the copies are the caller's."""

    def __init__(
        self,
        loaded: LoadedEngine,
        stream: Stream,
        activations: Callable[[int], Block],
        shapes: Mapping[str, Shape],
        *,
        on_device: bool,
    ) -> None:
        """Make a context and allocate; ``activations`` returns the worker's activation memory of at least that size.

        Raises:
            DeviceError: the library refuses, or memory is short.
            InputError: the engine has no profile for these shapes.
        """
        self._loaded, self._stream, self._activations = loaded, stream, activations
        self._requested, self._on_device = dict(shapes), on_device
        self._graph: CapturedGraph | None = None
        self._tried = not loaded.options.graphs
        self._runs = 0
        self._noted = False
        self._host: dict[str, HostBlock] = {}
        self.device: dict[str, Block] = {}
        self.inputs: dict[str, npt.NDArray[Any]] = {}
        """Page-locked arrays on the host; empty with ``on_device``."""
        self.outputs: dict[str, npt.NDArray[Any]] = {}
        self.shapes: dict[str, tuple[Shape, np.dtype[Any]]] = {}
        """Tensor -> shape and type, inputs and outputs."""
        try:
            self._context = self._prepared_context(own_graph=loaded.options.graphs)
            for name, (shape, dtype) in self.shapes.items():
                size = max(int(np.prod(shape)) * dtype.itemsize, 1)
                self.device[name] = loaded.cuda.allocate(size, stream, f"tensor {name} {shape}")
            if not on_device:
                self._allocate_host()
            self._address()
        except BaseException:
            self.close()
            raise

    def ready(self) -> None:
        """Capture and prove the graph if it is time to. What lies in the input buffers is lost then.

        Without a proof the step goes on without a graph, and says so.
        """
        if self._tried or self._runs == 0:
            return
        self._tried = True
        with self._loaded.building:
            try:
                if self._on_device:
                    self._stream.synchronize()
                    self._allocate_host()
                if self._loaded.library.capturable(self._context, self._stream):
                    self._capture()
                else:
                    self._leave_capture_to_the_library()
                self.finished()
            finally:
                with contextlib.suppress(UPFusionError):  # an error that is under way is the one to tell
                    self._stream.synchronize()
                if self._on_device:
                    self._drop_host()

    def launch(self, stream: Stream) -> None:
        """Enqueue the step on a stream: as a graph where there is one."""
        self._runs += 1
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            self._work(stream)

    def finished(self) -> None:
        """Take note that a first call is complete: its kernels are there to be kept."""
        if not self._noted:
            self._noted = True
            with self._loaded.building:
                self._loaded.library.warmed()

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
            raise self._loaded.failure("does not run")

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

    def _work(self, stream: Stream) -> None:
        """Enqueue what the graph will hold."""
        if self._on_device:
            self.compute(stream)
        else:
            self._whole(stream)

    def _whole(self, stream: Stream) -> None:
        """Enqueue copies and network."""
        self.copy_in(stream)
        self.compute(stream)
        self.copy_out(stream)

    def _prepared_context(self, *, own_graph: bool) -> Context:
        """Return a context that knows its profile, its shapes and its activation memory.

        Raises:
            DeviceError: the library refuses, or memory is short.
        """
        loaded = self._loaded
        profile = loaded.profile_for(self._requested)
        context = loaded.library.context(loaded.engine, own_graph=own_graph)
        if context is None:
            raise loaded.failure("gives no execution context")
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise loaded.failure(f"refuses its optimisation profile {profile}")
        self._stream.synchronize()
        for name, shape in self._requested.items():
            if not context.set_input_shape(name, shape):
                raise loaded.failure(f"refuses the shape {shape} for {name}")
        missing = context.infer_shapes()
        if missing:
            raise loaded.failure(f"does not know the shape of {', '.join(missing)}")
        block = self._activations(max(context.update_device_memory_size_for_shapes(), 1))
        context.set_device_memory(block.address, block.size)
        for name in (*loaded.inputs, *loaded.outputs):
            self.shapes[name] = (tuple(int(length) for length in context.get_tensor_shape(name)), loaded.dtypes[name])
        return context

    def _allocate_host(self) -> None:
        """Allocate a page-locked array for each tensor."""
        for name, (shape, dtype) in self.shapes.items():
            self._host[name] = self._loaded.cuda.allocate_pinned(self.device[name].size)
            count = int(np.prod(shape))
            array = self._host[name].bytes[: count * dtype.itemsize].view(dtype).reshape(shape)
            array[...] = 0
            (self.inputs if name in self._loaded.inputs else self.outputs)[name] = array

    def _drop_host(self) -> None:
        """Give the page-locked arrays back."""
        self.inputs.clear()
        self.outputs.clear()
        while self._host:
            self._host.popitem()[1].close()

    def _address(self) -> None:
        """Tell the context where its tensors are."""
        for name, block in self.device.items():
            if not self._context.set_tensor_address(name, block.address):
                raise self._loaded.failure(f"refuses an address for {name}")

    def _leave_capture_to_the_library(self) -> None:
        """Change to a context that captures by itself, and let it compile what it needs."""
        log.info("%s was not built for capture by the caller: the library captures by itself", self._loaded.path.name)
        self._context = self._prepared_context(own_graph=False)
        self._address()
        self._whole(self._stream)

    def _capture(self) -> None:
        """Capture the step and prove the graph."""
        flaw = ""
        try:
            self._graph = self._stream.capture(self._work)
            flaw = self._flaw(self._graph)
        except UPFusionError as error:
            flaw = error.problem
        if flaw:
            if self._graph is not None:
                self._graph.close()
                self._graph = None
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
            if array.dtype.kind in "ib":  # a decision: random indices would lead out of memory
                fill_natural(array)
                continue
            values = random.random(array.shape, np.float32)
            array[...] = values if array.dtype.kind == "f" else values * 255
        plain = self._results_of(self._whole)
        replayed = self._results_of(self._replay)
        for name, result in replayed.items():
            difference = _largest_difference(result, plain[name])
            if difference > (HALF_A_LEVEL if result.dtype.kind == "f" else 0):
                again = self._results_of(self._whole)
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
            self._stream.copy(self._host[name], self.device[name])
        launch(self._stream)
        self._stream.synchronize()
        return {name: array.copy() for name, array in self.outputs.items()}


def _largest_difference(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return max |first - second|; infinity where only one of them is a number."""
    if first.size == 0:
        return 0.0
    one, two = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - two)
    difference[(one == two) | (np.isnan(one) & np.isnan(two))] = 0
    return float(np.nan_to_num(difference, nan=np.inf).max())
