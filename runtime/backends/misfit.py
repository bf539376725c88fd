"""Why an engine does not run here, said once and with the command that makes one that does."""

from __future__ import annotations

from pathlib import Path

from upfusion.runtime.cuda import Cuda, out_of_memory
from upfusion.runtime.errors import DeviceError, UPFusionError
from upfusion.runtime.manifest import Manifest


def rebuild_command(path: Path, manifest: Manifest, builder: str, target: str = "") -> str:
    """Return the command that builds the engine again, for ``target`` (``sm89``) where the builder takes one."""
    graph = manifest.parent.name if manifest.parent else "fusion.onnx"
    return f"upfusion build {graph} -o {path.name} --builder {builder}" + (f" --target {target}" if target else "")


def unusable(path: Path, manifest: Manifest, error: UPFusionError) -> UPFusionError:
    """Return a missing GPU or library as an error about this engine: what it was built for, and where else it runs."""
    graph = manifest.parent.name if manifest.parent else "the ONNX file"
    return type(error)(
        f"{path.name} ({_built(manifest)}) cannot run here: {error.problem}",
        f"{error.hint}; without a GPU run {graph} with --device cpu; "
        f"for another GPU: {rebuild_command(path, manifest, manifest.build.builder if manifest.build else 'auto')}",
    )


def misfit(path: Path, manifest: Manifest, cuda: Cuda, library: str, said: str, remedy: str) -> DeviceError:
    """Return the error of a plan that the library does not load on this GPU; ``said`` is the library's reason."""
    if any(words in said.lower() for words in ("out of memory", "outofmemory", "insufficient gpu memory")):
        return out_of_memory(f"loading {path.name}", manifest.build.weights_bytes if manifest.build else None, cuda)
    return DeviceError(
        f"{path.name} was {_built(manifest)}; this machine has {library} and {cuda.name} ({cuda.target})"
        + (f": {said}" if said else ""),
        remedy,
    )


def _built(manifest: Manifest) -> str:
    """Return with what and for what an engine was built."""
    record = manifest.build
    if record is None:
        return "built with an unknown library"
    title = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}.get(record.builder, record.builder)
    where = record.gpu or ", ".join(record.targets) or "all GPUs it supports"
    return f"built with {title} {record.version} for {where}"
