"""Open an artifact: check it against its manifest and choose what runs it."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import re
from pathlib import Path
from typing import Any

from upfusion.runtime.backends.base import BACKENDS, Backend
from upfusion.runtime.decisions import decides_nothing
from upfusion.runtime.errors import ArtifactError, DeviceError, InputError
from upfusion.runtime.manifest import Manifest, manifest_path, read_manifest

log = logging.getLogger(__name__)

ENGINE_SUFFIXES = (".engine", ".plan")
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")

_OPTIONS_HINT = "pass OnnxRuntimeOptions for an ONNX file, EngineOptions for an engine, or neither"


def open_backend(path: Path, device: str, options: Any, *, takes_decisions: bool = False) -> tuple[Backend, Manifest]:
    """Return what runs an artifact on a device, and the artifact's manifest; both were checked against the file.

    ``device`` and ``options`` as :func:`upfusion.runtime.fuser.load` takes them, which also lists what is raised.
    ``takes_decisions``: the caller has decisions for an artifact that takes them.
    """
    backend, manifest = _opened(path, device, options)
    if manifest.contract.decision_inputs and not takes_decisions:
        backend.close()
        raise decides_nothing(path)
    return backend, manifest


def _opened(path: Path, device: str, options: Any) -> tuple[Backend, Manifest]:
    """Return the backend that the file's suffix names, and the manifest."""
    kind, device_id = _parsed(device)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", "check the path")
    if path.suffix == ".onnx":
        return _open_onnx(path, kind, device_id, options)
    if path.suffix in ENGINE_SUFFIXES:
        return _open_engine(path, kind, device_id, options)
    if path.suffix in CHECKPOINT_SUFFIXES:
        raise ArtifactError(
            f"{path} is a checkpoint; the runtime opens ONNX files and engines",
            f"upfusion export {path} -o fusion.onnx",
        )
    raise ArtifactError(
        f"{path}: neither an ONNX file nor an engine by its suffix {path.suffix!r}",
        f"name it .onnx, or {' or '.join(ENGINE_SUFFIXES)}",
    )


def _open_onnx(path: Path, kind: str, device_id: int, options: Any) -> tuple[Backend, Manifest]:
    """Return the ONNX Runtime backend of a graph, and its manifest."""
    from upfusion.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeOptions, available_providers

    manifest = None
    if manifest_path(path).is_file():
        manifest = read_manifest(path)
    else:
        log.warning(
            "%s has no %s beside it: taking the manifest in its metadata, without a check of the file's digest",
            path,
            manifest_path(path).name,
        )
    if not isinstance(options, OnnxRuntimeOptions | None):
        raise InputError(f"{path} runs on ONNX Runtime, which takes no {type(options).__name__}", _OPTIONS_HINT)
    options = options or OnnxRuntimeOptions()
    if kind != "auto":
        options = dataclasses.replace(options, provider=kind, device_id=device_id)
    elif options == OnnxRuntimeOptions() and "cuda" in available_providers():
        try:
            backend = OnnxRuntimeBackend(path, manifest, dataclasses.replace(options, provider="cuda"))
            return backend, backend.manifest
        except DeviceError as error:
            log.warning("%s runs on the CPU: %s", path.name, error.problem)
    backend = OnnxRuntimeBackend(path, manifest, options)
    return backend, backend.manifest


def _open_engine(path: Path, kind: str, device_id: int, options: Any) -> tuple[Backend, Manifest]:
    """Return the TensorRT or TensorRT-RTX backend of an engine, and its manifest."""
    from upfusion.runtime.backends.engine_library import EngineOptions

    if not isinstance(options, EngineOptions | None):
        raise InputError(f"{path} is an engine, which takes no {type(options).__name__}", _OPTIONS_HINT)
    manifest = read_manifest(path)
    if kind == "cpu":
        raise DeviceError(
            f"{path} is an engine: it runs on an NVIDIA GPU only",
            f"run {manifest.parent.name if manifest.parent else 'the ONNX file'} instead, which also runs on the CPU",
        )
    builder = manifest.build.builder if manifest.build else ""
    if builder not in BACKENDS:
        raise ArtifactError(
            f"{path}: its manifest names the builder {builder or 'of no engine'}, which this upfusion does not know",
            "build it again with upfusion build",
        )
    verdict = manifest.acceptance.get("verdict")
    if verdict != "accepted":
        log.warning(
            "%s was %s: upfusion accept %s --data VISIBLE INFRARED",
            path.name,
            "never accepted" if verdict is None else f"not accepted ({verdict})",
            path,
        )
    backend: Backend = _backend_class(builder)(path, manifest, options, device_id=device_id)
    return backend, manifest


def _backend_class(name: str) -> Any:
    """Import a backend."""
    module, attribute = BACKENDS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def _parsed(device: str) -> tuple[str, int]:
    """Return kind and number of a device name.

    Raises:
        InputError: not a device name.
    """
    match = re.fullmatch(r"(auto|cpu|cuda|tensorrt)(?::(\d+))?", device)
    if match is None or (match[2] and match[1] in ("auto", "cpu")):
        raise InputError(f"unknown device {device!r}", "use auto, cpu, cuda, cuda:1 or tensorrt")
    return match[1], int(match[2] or 0)
