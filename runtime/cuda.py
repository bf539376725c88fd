"""What engines need of CUDA: memory, streams, captured graphs. The one place that imports cuda.core.

The protocols are the seam: everything above works on them, and tests put a machine without a GPU behind them.
Errors of CUDA are translated here, at the border.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from upfusion.runtime.errors import DeviceError, InputError, MissingDependencyError

Bytes = npt.NDArray[np.uint8]


class Block(Protocol):
    """A piece of memory that stays where it is until it is closed."""

    @property
    def address(self) -> int:
        """Where it begins."""

    @property
    def size(self) -> int:
        """Bytes."""

    def close(self) -> None:
        """Give it back."""


class HostBlock(Block, Protocol):
    """Page-locked memory of the host, which the GPU copies from and to without the CPU."""

    @property
    def bytes(self) -> Bytes:
        """The memory as an array; not to be used after :meth:`close`."""


class Event(Protocol):
    """A point in a stream."""


class CapturedGraph(Protocol):
    """Work that was recorded once and is launched as a whole."""

    @property
    def nodes(self) -> int:
        """How many operations were recorded."""

    def launch(self, stream: Stream) -> None:
        """Enqueue it all."""

    def close(self) -> None:
        """Give it back."""


class Stream(Protocol):
    """A queue of work on the device."""

    @property
    def handle(self) -> int:
        """The number that other libraries know it by."""

    def copy(self, source: Block, target: Block) -> None:
        """Enqueue a copy between blocks of one size."""

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""

    def capture(self, work: Callable[[Stream], None]) -> CapturedGraph:
        """Return a graph of what ``work`` enqueues on the stream it is given; nothing of it runs now."""

    def record(self, *, timed: bool = False) -> Event:
        """Return the point that the stream has reached when everything enqueued so far is done."""

    def wait(self, event: Event) -> None:
        """Let what is enqueued from here on wait for a point in any stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignArray:
    """Somebody else's array on the GPU."""

    block: Block
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Cuda(Protocol):
    """One GPU."""

    @property
    def name(self) -> str:
        """As the driver calls it."""

    @property
    def target(self) -> str:
        """``sm89`` for compute capability 8.9."""

    def activate(self) -> None:
        """Make it the calling thread's device."""

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""

    def stream(self) -> Stream:
        """Return a new stream."""

    def foreign_stream(self, stream: object) -> Stream:
        """Return somebody else's stream, given by its number or by ``__cuda_stream__``."""

    def allocate(self, size: int, stream: Stream, purpose: str) -> Block:
        """Return memory of the device; ``purpose`` says what for, in errors."""

    def allocate_pinned(self, size: int) -> HostBlock:
        """Return page-locked memory of the host."""

    def foreign_array(self, array: object, stream: Stream) -> ForeignArray:
        """Return somebody else's array, ordered so that work on ``stream`` sees it complete."""

    def elapsed_ms(self, first: Event, last: Event) -> float:
        """Return the time between two points that were recorded with ``timed``."""

    def exported(self, block: Block, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Return an object with ``__dlpack__`` and ``__dlpack_device__`` for a block."""


class CudaCore:
    """A GPU through cuda.core, in the primary context, which PyTorch, CuPy and ``pycuda.autoprimaryctx`` share."""

    def __init__(self, device_id: int = 0) -> None:
        """Open a GPU.

        Raises:
            MissingDependencyError: cuda-core is not installed.
            DeviceError: there is no driver or no such GPU.
        """
        try:
            from cuda.core import Device
        except ImportError as error:
            raise MissingDependencyError(
                f"engines need cuda-core, which cannot be imported: {error}", "pip install 'upfusion[rtx]'"
            ) from error
        try:
            self._device = Device(device_id)
            self._device.set_current()
            self._name = str(self._device.name)
            capability = self._device.compute_capability
        except Exception as error:  # no driver, no GPU, not that many: each has a class of its own
            old = any(name in str(error) for name in ("INSUFFICIENT_DRIVER", "InsufficientDriver", "DRIVER_MISMATCH"))
            raise DeviceError(
                f"no usable NVIDIA GPU number {device_id}: {_first_line(error)}",
                "update the NVIDIA driver, which is older than the CUDA libraries here; upfusion doctor shows both"
                if old
                else "upfusion doctor says what it sees",
            ) from error
        self._target = f"sm{capability.major}{capability.minor}"

    @property
    def name(self) -> str:
        """As the driver calls it."""
        return self._name

    @property
    def target(self) -> str:
        """``sm89`` for compute capability 8.9."""
        return self._target

    def activate(self) -> None:
        """Make it the calling thread's device."""
        with _translated("setting the device"):
            self._device.set_current()

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""
        from cuda.bindings import driver

        status, free, total = driver.cuMemGetInfo()
        if status != driver.CUresult.CUDA_SUCCESS:
            raise DeviceError(f"CUDA does not say how much memory is free: {status.name}", _RESTART)
        return int(free), int(total)

    def stream(self) -> Stream:
        """Return a new stream, which does not wait for the default stream."""
        from cuda.core import StreamOptions

        with _translated("creating a stream"):
            return _CoreStream(self._device.create_stream(options=StreamOptions(nonblocking=True)))

    def foreign_stream(self, stream: object) -> Stream:
        """Return somebody else's stream, given by its number or by ``__cuda_stream__``."""
        from cuda.core import Stream as CoreStream

        with _translated("taking over a stream"):
            if isinstance(stream, int):
                return _CoreStream(CoreStream.from_handle(stream))
            if hasattr(stream, "__cuda_stream__"):
                return _CoreStream(self._device.create_stream(stream))
        raise InputError(
            f"a stream must be a number or have __cuda_stream__, got {type(stream).__name__}",
            "pass torch.cuda.current_stream(), a cupy.cuda.Stream, or the handle as an int",
        )

    def allocate(self, size: int, stream: Stream, purpose: str) -> Block:
        """Return memory of the device.

        Raises:
            DeviceError: there is not enough; says how much is.
        """
        assert isinstance(stream, _CoreStream)
        try:
            return _CoreBlock(self._device.allocate(size, stream=stream.core))
        except Exception as error:
            if "OUT_OF_MEMORY" not in str(error).upper():
                raise _device_error(f"allocating {purpose}", error) from error
            raise out_of_memory(purpose, size, self) from error

    def allocate_pinned(self, size: int) -> HostBlock:
        """Return page-locked memory of the host."""
        from cuda.core import LegacyPinnedMemoryResource

        with _translated(f"allocating {size} bytes of page-locked host memory"):
            return _CoreHostBlock(LegacyPinnedMemoryResource().allocate(size))

    def foreign_array(self, array: object, stream: Stream) -> ForeignArray:
        """Return somebody else's array, ordered so that work on ``stream`` sees it complete.

        Raises:
            InputError: it is not on this GPU, or its elements do not lie one after another.
        """
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        try:
            view = StridedMemoryView.from_any_interface(array, stream_ptr=stream.handle)
        except Exception as error:
            raise InputError(
                f"{type(array).__name__} gives no view of GPU memory: {_first_line(error)}",
                "pass arrays with __dlpack__ or __cuda_array_interface__",
            ) from error
        shape = tuple(int(size) for size in view.shape)
        if not view.is_device_accessible or view.device_id != self._device.device_id:
            raise InputError(
                f"the array is on device {view.device_id}, the engine on device {self._device.device_id}",
                "copy it to the engine's GPU, or load the engine with device='cuda:N'",
            )
        if view.dtype is None or (view.strides is not None and tuple(view.strides) != _dense_strides(shape)):
            raise InputError(f"the array {shape} on the GPU is not contiguous", "pass a contiguous copy")
        size = int(np.prod(shape)) * view.dtype.itemsize
        block = _CoreBlock(Buffer.from_handle(view.ptr, size, owner=view))
        return ForeignArray(block=block, shape=shape, dtype=np.dtype(view.dtype))

    def elapsed_ms(self, first: Event, last: Event) -> float:
        """Return the time between two points that were recorded with ``timed``."""
        with _translated("reading the time"):
            return float(last - first)  # type: ignore[operator]

    def exported(self, block: Block, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Return an object with ``__dlpack__`` and ``__dlpack_device__`` for a block."""
        from cuda.core.utils import StridedMemoryView

        assert isinstance(block, _CoreBlock)
        return StridedMemoryView.from_buffer(block.core, tuple(shape), dtype=dtype, itemsize=dtype.itemsize)


class _CoreBlock:
    """A ``cuda.core.Buffer``."""

    def __init__(self, buffer: Any) -> None:
        self.core = buffer
        self._address, self._size = int(buffer.handle), int(buffer.size)

    @property
    def address(self) -> int:
        return self._address

    @property
    def size(self) -> int:
        return self._size

    def close(self) -> None:
        with _translated("giving memory back"):
            self.core.close()


class _CoreHostBlock(_CoreBlock):
    """A buffer in page-locked memory."""

    def __init__(self, buffer: Any) -> None:
        super().__init__(buffer)
        self._bytes: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    @property
    def bytes(self) -> Bytes:
        return self._bytes


class _CoreStream:
    """A ``cuda.core.Stream``."""

    def __init__(self, stream: Any) -> None:
        self.core = stream
        self._handle = int(stream.handle)

    @property
    def handle(self) -> int:
        return self._handle

    def copy(self, source: Block, target: Block) -> None:
        assert isinstance(source, _CoreBlock)
        assert isinstance(target, _CoreBlock)
        try:
            source.core.copy_to(target.core, stream=self.core)
        except Exception as error:
            raise _device_error("copying", error) from error

    def synchronize(self) -> None:
        try:
            self.core.sync()
        except Exception as error:
            raise _device_error("running", error) from error

    def capture(self, work: Callable[[Stream], None]) -> CapturedGraph:
        with _translated("capturing a graph"):
            builder = self.core.create_graph_builder()
            try:
                builder.begin_building(mode="thread_local")
                try:
                    work(_CoreStream(builder.stream))
                finally:
                    builder.end_building()
                nodes = len(builder.graph_definition.nodes())
                graph = builder.complete()
            finally:
                builder.close()
            graph.upload(self.core)
            return _CoreGraph(graph, nodes)

    def record(self, *, timed: bool = False) -> Event:
        from cuda.core import EventOptions

        with _translated("recording an event"):
            event: Event = self.core.record(options=EventOptions(timing_enabled=timed))
            return event

    def wait(self, event: Event) -> None:
        with _translated("waiting for an event"):
            self.core.wait(event)


class _CoreGraph:
    """A ``cuda.core.graph.Graph``."""

    def __init__(self, graph: Any, nodes: int) -> None:
        self._graph = graph
        self._nodes = nodes

    @property
    def nodes(self) -> int:
        return self._nodes

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, _CoreStream)
        try:
            self._graph.launch(stream.core)
        except Exception as error:
            raise _device_error("launching a graph", error) from error

    def close(self) -> None:
        self._graph.close()


def out_of_memory(purpose: str, needed: int | None, cuda: Cuda) -> DeviceError:
    """Return the error of an allocation that found no room; ``needed`` is None where the library does not say."""
    free, total = cuda.memory()
    need = "more than there is" if needed is None else _megabytes(needed)
    return DeviceError(
        f"out of memory on {cuda.name}: {purpose} needs {need}, {_megabytes(free)} of {_megabytes(total)} are free",
        "close other programs on the GPU, use smaller images or fewer contexts, or make a leaner engine: "
        "upfusion export CHECKPOINT -o lean.onnx --lean --precision fp16, then "
        "upfusion build lean.onnx -o lean.engine",
    )


_RESTART = "restart the program: after such an error CUDA often stays unusable; if it comes again, run upfusion doctor"


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn CUDA's exceptions into ours."""
    try:
        yield
    except (DeviceError, InputError):
        raise
    except Exception as error:
        raise _device_error(doing, error) from error


def _device_error(doing: str, error: Exception) -> DeviceError:
    """Return a CUDA failure as ours."""
    return DeviceError(f"CUDA failed while {doing}: {_first_line(error)}", _RESTART)


def _dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of an array without gaps."""
    return tuple(int(np.prod(shape[place + 1 :])) for place in range(len(shape)))


def _megabytes(size: int) -> str:
    """Return a size as people say it."""
    return f"{size / 1e6:,.0f} MB"


def _first_line(error: Exception) -> str:
    """Return what an exception says, or its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
