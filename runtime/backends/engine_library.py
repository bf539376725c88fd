"""The part of TensorRT and TensorRT-RTX that running an engine needs, and what the two do differently."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from upfusion.runtime.cuda import Cuda, Stream
from upfusion.runtime.errors import InputError
from upfusion.runtime.manifest import Manifest


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
