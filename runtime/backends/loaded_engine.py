"""An engine in memory, its tensors checked against the manifest."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from upfusion.runtime.backends.base import Shape
from upfusion.runtime.backends.engine_library import Engine, EngineOptions, Library
from upfusion.runtime.cuda import Cuda, out_of_memory
from upfusion.runtime.errors import DeviceError, InputError, ManifestError
from upfusion.runtime.manifest import Manifest

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


class LoadedEngine:
    """The engine and what is known about its tensors; shared by all workers.

    ``building`` is held while a context is made or a graph captured: not everything in there likes company.
    """

    def __init__(
        self, path: Path, manifest: Manifest, library: Library, engine: Engine, cuda: Cuda, options: EngineOptions
    ) -> None:
        self.path, self.library, self.engine, self.cuda, self.options = path, library, engine, cuda, options
        self.building = threading.RLock()
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if engine.get_tensor_mode(name).name == "INPUT")
        self.outputs = tuple(name for name in names if name not in self.inputs)
        self.dtypes = {name: np.dtype(_TYPES[engine.get_tensor_dtype(name).name]) for name in names}
        for side, specs, found in (
            ("inputs", manifest.contract.all_inputs, self.inputs),
            ("outputs", manifest.contract.all_outputs, self.outputs),
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

    def failure(self, what: str) -> DeviceError:
        """Return an error with what the library said."""
        said = self.library.complaints()
        if "out of memory" in said.lower() or "outofmemory" in said.lower():
            return out_of_memory("running the engine", None, self.cuda)
        return DeviceError(
            f"{self.path.name} {what}" + (f": {said}" if said else ""),
            "upfusion doctor; if it comes again, build the engine again on this machine",
        )


def _listed(shapes: Mapping[str, Shape]) -> str:
    """Return shapes by name."""
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
