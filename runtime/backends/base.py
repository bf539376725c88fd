"""What every backend can do, and the shapes it works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from upfusion.runtime.manifest import TensorSpec

Arrays = Mapping[str, npt.NDArray[Any]]
Shape = tuple[int, ...]

BACKENDS = {
    "onnxruntime": "upfusion.runtime.backends.onnxruntime:OnnxRuntimeBackend",
    "tensorrt": "upfusion.runtime.backends.tensorrt:TensorRTBackend",
    "tensorrt-rtx": "upfusion.runtime.backends.tensorrt_rtx:TensorRTRTXBackend",
    "null": "upfusion.runtime.backends.null:NullBackend",
}
"""Backend name -> module and class, imported when the backend is chosen."""


class Backend(Protocol):
    """One execution context of an artifact on one device. Not thread-safe: one per worker."""

    device: str
    """Where it runs, in words."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return the graph's outputs by name: views of the backend's buffers, which the next call overwrites."""

    def close(self) -> None:
        """Give memory back; the backend cannot be used afterwards. A second call does nothing."""


@runtime_checkable
class BufferedBackend(Protocol):
    """A backend that owns its input buffers, so that the caller can fill them in place."""

    def buffers(self, shapes: Mapping[str, Shape]) -> Arrays:
        """Return input arrays of these shapes that :meth:`Backend.run` takes without another copy.

        They are allocated when the shapes are first asked for, and belong to the backend.
        """


@runtime_checkable
class SharedBackend(Protocol):
    """A backend whose loaded artifact can serve several execution contexts at once."""

    def another(self) -> Backend:
        """Return a further execution context of the same loaded artifact."""


@runtime_checkable
class TimedBackend(Protocol):
    """A backend that can tell what its device's time goes into."""

    def parts_ms(self, inputs: Arrays) -> dict[str, float]:
        """Run once and return the milliseconds of each part by name."""


@runtime_checkable
class GpuBackend(Protocol):
    """A backend that takes arrays on its GPU and leaves the result there."""

    def run_on_device(
        self, inputs: Mapping[str, object], output: str, *, single: bool, stream: object, out: object
    ) -> Any:
        """Return one output on the GPU; see :class:`upfusion.runtime.backends.engine.EngineBackend`."""


def symbols(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return the sizes that the named dimensions of the inputs take on with ``shapes``."""
    return {
        size: actual
        for spec in specs
        for size, actual in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(size, str)
    }


def resolved(shape: Sequence[int | str | None], sizes: Mapping[str, int]) -> Shape | None:
    """Return a shape with its named dimensions filled in, or None where a name is not known."""
    known = tuple(size if isinstance(size, int) else sizes.get(size or "") for size in shape)
    return None if None in known else tuple(size for size in known if size is not None)
