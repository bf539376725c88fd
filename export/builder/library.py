"""The one loader of ``tensorrt`` and ``tensorrt_rtx``, with a record of what the loaded one can do."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from upfusion.export.builder.options import BuilderName
from upfusion.runtime.errors import MissingDependencyError

MODULES: dict[BuilderName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL: dict[BuilderName, str] = {
    "tensorrt": 'pip install "upfusion[tensorrt]"',
    "tensorrt-rtx": 'pip install "upfusion[rtx]"',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a library can do; found by looking for the members, never by its version."""

    targets: tuple[str, ...]
    """Compute capabilities that it builds for on any machine; empty: only for the GPU it runs on."""
    streams_plan: bool
    """Whether the plan can be written while it is made."""

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds without a GPU, leaving the tuning to the machine that runs the engine.

        Then a timing cache and an optimization level have nothing to act on.
        """
        return bool(self.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A loaded library."""

    name: BuilderName
    module: ModuleType
    version: str
    capabilities: Capabilities


_loaded: list[Library] = []


def is_installed(name: BuilderName) -> bool:
    """Whether the library's Python package is there, without importing it."""
    return importlib.util.find_spec(MODULES[name]) is not None


def load(name: BuilderName) -> Library:
    """Import a library; a process loads one of them, once.

    Raises:
        MissingDependencyError: not installed, or its native libraries do not load.
    """
    try:
        module = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{MODULES[name]} is not installed: {error}", INSTALL[name]) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{MODULES[name]} is installed but does not load: {error}",
            f"its native libraries or their CUDA do not fit this machine; install again: {INSTALL[name]}",
        ) from error
    library = Library(name=name, module=module, version=str(module.__version__), capabilities=capabilities_of(module))
    assert not _loaded or _loaded[0].name == name, "one library per process: their native symbols are not kept apart"
    _loaded[:] = [library]
    return library


def loaded() -> Library:
    """Return the library that this process loaded."""
    assert _loaded, "no library is loaded: only the worker process may import this"
    return _loaded[0]


def capabilities_of(module: Any) -> Capabilities:
    """Return what a module offers."""
    enumeration = getattr(module, "ComputeCapability", None)
    names = [] if enumeration is None else list(enumeration.__members__)
    return Capabilities(
        targets=tuple(name.lower() for name in names if name.startswith("SM")),
        streams_plan=hasattr(module.Builder, "build_serialized_network_to_stream"),
    )


def main(name: BuilderName) -> None:
    """Print what a library is, or why it does not load, as a line of JSON: the answer of a process started for it."""
    try:
        library = load(name)
        answer = {"version": library.version, "targets": library.capabilities.targets}
    except MissingDependencyError as error:
        answer = {"problem": error.problem, "hint": error.hint}
    sys.stdout.write(json.dumps(answer) + "\n")
