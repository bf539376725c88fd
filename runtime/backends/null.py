"""A backend that computes nothing: outputs of the right shape, all zero. It measures everything but inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from upfusion.runtime.backends.base import Arrays, Shape, resolved, symbols
from upfusion.runtime.errors import ManifestError
from upfusion.runtime.manifest import Contract


class NullBackend:
    """Zeros in the shapes that the contract promises."""

    def __init__(self, contract: Contract) -> None:
        self.device = "null"
        self._contract = contract
        self._inputs: dict[tuple[Shape, ...], dict[str, npt.NDArray[Any]]] = {}
        self._outputs: dict[tuple[Shape, ...], dict[str, npt.NDArray[Any]]] = {}

    def buffers(self, shapes: Mapping[str, Shape]) -> Arrays:
        """Return input arrays of these shapes."""
        key = tuple(shapes[spec.name] for spec in self._contract.all_inputs)
        if key not in self._inputs:
            self._inputs[key] = {
                spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in self._contract.all_inputs
            }
        return self._inputs[key]

    def run(self, inputs: Arrays) -> Arrays:
        """Return zeros."""
        key = tuple(inputs[spec.name].shape for spec in self._contract.all_inputs)
        outputs = self._outputs.get(key)
        if outputs is None:
            sizes = symbols(self._contract.all_inputs, {name: array.shape for name, array in inputs.items()})
            outputs = {}
            for spec in self._contract.all_outputs:
                shape = resolved(spec.shape, sizes)
                if shape is None:
                    raise ManifestError(
                        f"output {spec.name} has a dimension that no input names: {spec.shape}", "export it again"
                    )
                outputs[spec.name] = np.zeros(shape, spec.dtype)
            self._outputs[key] = outputs
        return outputs

    def another(self) -> NullBackend:
        """Return a further null backend."""
        return NullBackend(self._contract)

    def close(self) -> None:
        """Forget the buffers."""
        self._inputs.clear()
        self._outputs.clear()
