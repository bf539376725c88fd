"""What goes through the pipes between the caller and the worker: one JSON object per line.

The caller sends one :class:`Request` and later, at most, closes its end, which cancels. The worker sends any number
of :class:`Progress` and :class:`Log`, then one :class:`Finished` or :class:`Failed`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from upfusion.export.builder.options import BuilderName
from upfusion.runtime import errors

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRequest:
    """What the manifest says about one input or output of the graph."""

    name: str
    dtype: str
    """numpy's name."""
    minimum: Shape
    optimum: Shape
    maximum: Shape

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> TensorRequest:
        """Read what JSON makes of a tensor."""
        shapes: dict[str, Any] = {name: tuple(record.pop(name)) for name in ("minimum", "optimum", "maximum")}
        return cls(**record, **shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One engine to build."""

    builder: BuilderName
    onnx: str
    plan: str
    """The file to write, which the caller renames."""
    precision: str
    inputs: tuple[TensorRequest, ...]
    outputs: tuple[TensorRequest, ...]
    targets: tuple[str, ...]
    timing_cache: str | None
    workspace_bytes: int | None
    optimization_level: int | None
    aux_streams: int
    verbose: bool

    def to_line(self) -> str:
        """Return the request as one line of JSON."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Request:
        """Read :meth:`to_line`."""
        record = json.loads(line)
        for key in ("inputs", "outputs"):
            record[key] = tuple(TensorRequest.from_record(tensor) for tensor in record[key])
        record["targets"] = tuple(record["targets"])
        return cls(**record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the build is."""

    phase: str
    """The library's name of what it is doing."""
    fraction: float
    """0..1, never falling. Counts the library's steps, which take unequal times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A message of the library."""

    level: int
    """As in ``logging``."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The plan is written."""

    version: str
    """The library's."""
    activation_memory_bytes: int
    """As the builder reported it; 0 where it reported none."""
    weights_bytes: int
    """As the builder reported it; 0 where it reported none."""
    bytes_moved: int
    """Read and written by the engine's layers in one run; 0 where sizes vary or the builder does not list layers."""
    peak_memory_bytes: int
    """Largest resident memory of the worker; 0 where the system does not tell."""
    settings: dict[str, Any]
    """What was set in the library, as it was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The build ended with an error of our family."""

    error: str
    """Name of the class."""
    problem: str
    hint: str

    def exception(self) -> errors.UPFusionError:
        """Return the error to raise on the caller's side."""
        kind: type[errors.UPFusionError] = getattr(errors, self.error)
        return kind(self.problem, self.hint)


Message: TypeAlias = Progress | Log | Finished | Failed
_MESSAGES: dict[str, type[Message]] = {kind.__name__: kind for kind in (Progress, Log, Finished, Failed)}


def line_from_message(message: Message) -> str:
    """Return a worker's message as one line of JSON."""
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}) + "\n"


def message_from_line(line: str) -> Message:
    """Read :func:`line_from_message`."""
    record = json.loads(line)
    return _MESSAGES[record.pop("kind")](**record)
