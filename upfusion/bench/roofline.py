"""The least time of a graph on the GPU that ran it, by the cost model's counts and the GPU's datasheet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from upfusion.bench.contender import Opened
from upfusion.runtime.files import sha256_of
from upfusion.runtime.images import padded_size

if TYPE_CHECKING:
    from upfusion.export.cost import Gpu

OTHER_BOARDS = ("pcie", "nvl", "laptop", "max-q", "mobile", "d", "mig")
"""Words in a GPU's name that tell it from the one in the table: slower boards under the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The least time of one call, and how far above it the network ran."""

    gpu: str
    """Name in the cost model's table."""
    floor_ms: float
    measured_ms: float
    """Median of the compute part, on the device's clock."""

    @property
    def measured_over_floor(self) -> float:
        """1 would be as fast as the datasheet allows."""
        return self.measured_ms / self.floor_ms


def roofline_of(
    artifact: Opened, gpu_name: str | None, size: tuple[int, int], compute_ms: float | None
) -> Roofline | str:
    """Return the roofline of a call for images of a size, or the sentence why there is none."""
    if gpu_name is None:
        return "not on a GPU"
    if compute_ms is None:
        return "the backend does not tell its compute time apart"
    graph = _graph_of(artifact)
    if isinstance(graph, str):
        return graph
    try:
        from upfusion.export.cost import GPUS, cost_of, read_graph
    except ImportError as error:
        return f"counting needs {error.name}: pip install 'upfusion[bench]'"
    gpu = gpu_in_table(gpu_name, GPUS)
    if gpu is None:
        return f"the cost model has no figures for {gpu_name}"
    contract = artifact.contract
    varying = None if contract.sizes.fixed else padded_size(*size, contract.size_multiple)
    floor = cost_of(read_graph(graph, varying), gpu).total.roofline_ms
    assert floor is not None
    return Roofline(gpu=gpu.name, floor_ms=floor, measured_ms=compute_ms)


def gpu_in_table(name: str, table: tuple[Gpu, ...]) -> Gpu | None:
    """Return the entry that a driver's name, such as ``NVIDIA A100-SXM4-80GB``, speaks of; None if there is none."""
    words = re.split(r"[\s\-]+", name.lower())
    if set(words) & set(OTHER_BOARDS):
        return None
    for gpu in table:
        own = gpu.name.lower().split()
        if any(words[place : place + len(own)] == own for place in range(len(words))):
            return gpu
    return None


def _graph_of(artifact: Opened) -> Path | str:
    """Return the ONNX file that an artifact is or was built from, or why it is not at hand."""
    if artifact.path.suffix == ".onnx":
        return artifact.path
    if artifact.manifest is None or artifact.manifest.parent is None:
        return "only graphs are counted"
    parent = artifact.manifest.parent
    graph = artifact.path.with_name(parent.name)
    if not graph.is_file() or sha256_of(graph) != parent.sha256:
        return f"{parent.name}, which it was built from, is not beside it"
    return graph
