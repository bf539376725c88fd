"""An engine and its manifest from an ONNX file, or an error and no file."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import time
from pathlib import Path

from upfusion import __version__
from upfusion.export.builder.choice import choose_builder
from upfusion.export.builder.gpus import installed_gpus
from upfusion.export.builder.messages import Finished, Request, Shape, TensorRequest
from upfusion.export.builder.options import BuilderName, BuildOptions
from upfusion.export.builder.process import OnProgress, build_in_worker
from upfusion.runtime.errors import ArtifactError, InputError, ManifestError
from upfusion.runtime.manifest import (
    BuildRecord,
    Contract,
    Manifest,
    Parent,
    TensorSpec,
    manifest_path,
    read_manifest,
    replacing_artifact,
)

log = logging.getLogger(__name__)

PORTABLE_TARGETS = ("ampere+",)
"""What TensorRT-RTX builds for when no target is named: every GeForce and RTX GPU since Ampere."""


def engine_from_onnx(
    onnx_path: str | Path,
    engine_path: str | Path,
    options: BuildOptions | None = None,
    progress: OnProgress | None = None,
) -> Manifest:
    """Build an engine from an exported graph; afterwards the plan and its manifest are there, or neither.

    The plan is the library's own bytes and nothing else. The manifest is the graph's, with the graph as parent and
    a record of the build; it claims neither parity nor acceptance, because the engine was not executed.

    Args:
        onnx_path: the graph, with its manifest beside it.
        engine_path: the plan to write; an engine that is there already is replaced at the end only.
        options: library, targets and settings; by default those that fit this machine.
        progress: called with the name of the phase and the fraction done.

    Raises:
        ArtifactError: the graph is missing, truncated or not what its manifest says.
        MissingDependencyError: the library is not installed.
        DeviceError: the library needs a GPU that is not here, or more of its memory.
        InputError: options that do not fit together or have no effect.
        BuildError: the library cannot import or build the graph.
    """
    onnx_path, engine_path, options = Path(onnx_path), Path(engine_path), options or BuildOptions()
    graph = _graph_manifest(onnx_path)
    if engine_path.resolve() in (onnx_path.resolve(), manifest_path(onnx_path).resolve()):
        raise InputError(f"{engine_path} is the input", "give the engine another name: -o fusion.engine")
    gpus = installed_gpus()
    choice = choose_builder(options, gpus)
    log.info("builder %s: %s", choice.builder, choice.reason)
    began = time.monotonic()
    with replacing_artifact(engine_path) as (temporary, record_file):
        request = request_from_contract(graph.contract, graph.precision, onnx_path, temporary, choice.builder, options)
        finished = build_in_worker(request, progress)
        engine = dataclasses.replace(
            graph,
            kind="engine",
            parent=Parent(name=onnx_path.name, sha256=graph.sha256),
            versions={**graph.versions, choice.builder: finished.version},
            parity={},
            acceptance={},
            build=_record(choice.builder, options, finished, seconds=time.monotonic() - began),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            tool_version=__version__,
        )
        if choice.builder == "tensorrt":
            engine = _tuned_here(engine, gpus[0].name, gpus[0].target)
        engine.write_as(record_file, temporary)
    return read_manifest(engine_path)


def request_from_contract(
    contract: Contract, precision: str, onnx_path: Path, plan: Path, builder: BuilderName, options: BuildOptions
) -> Request:
    """Return what the worker is told: the graph's contract with every named size made a number."""
    return Request(
        builder=builder,
        onnx=str(onnx_path),
        plan=str(plan),
        precision=precision,
        inputs=tuple(_tensor_request(tensor, contract, onnx_path) for tensor in contract.all_inputs),
        outputs=tuple(_tensor_request(tensor, contract, onnx_path) for tensor in contract.all_outputs),
        targets=options.targets if builder == "tensorrt-rtx" else (),
        timing_cache=str(options.timing_cache) if options.timing_cache else None,
        workspace_bytes=options.workspace_bytes,
        optimization_level=options.optimization_level,
        aux_streams=options.aux_streams,
        verbose=options.verbose,
    )


def _graph_manifest(path: Path) -> Manifest:
    """Return the manifest of a graph of ours.

    Raises:
        ArtifactError: no such file, another digest than the manifest's, or an engine.
        ManifestError: a graph that was not exported by us.
    """
    if path.is_file() and not manifest_path(path).is_file():
        raise ManifestError(
            f"{path} has no manifest ({manifest_path(path).name}) beside it, so nothing tells what it takes and gives",
            "copy it together with the graph, or make both: upfusion export CHECKPOINT -o fusion.onnx",
        )
    manifest = read_manifest(path)
    if manifest.kind != "onnx":
        raise ArtifactError(f"{path} is an engine already", "build from the .onnx file that it was made from")
    return manifest


def _tensor_request(tensor: TensorSpec, contract: Contract, onnx_path: Path) -> TensorRequest:
    """Return a tensor of the contract with its smallest, best and largest shape."""

    def shape(size: tuple[int, int]) -> Shape:
        named = {"batch": contract.batch, "height": size[0], "width": size[1]}
        try:
            return tuple(named[side] if isinstance(side, str) else side for side in tensor.shape)
        except KeyError as error:
            raise ManifestError(
                f"the manifest of {onnx_path} names a size {error} in {tensor.name}; known are {', '.join(named)}",
                "export again, or update upfusion",
            ) from error

    sizes = contract.sizes
    return TensorRequest(
        name=tensor.name,
        dtype=tensor.dtype,
        minimum=shape(sizes.minimum),
        optimum=shape(sizes.optimum),
        maximum=shape(sizes.maximum),
    )


def _record(builder: BuilderName, options: BuildOptions, finished: Finished, *, seconds: float) -> BuildRecord:
    """Return the record of a finished build for a machine without a GPU."""
    return BuildRecord(
        builder=builder,
        version=finished.version,
        targets=options.targets or PORTABLE_TARGETS,
        gpu="",
        settings=finished.settings,
        seconds=round(seconds, 3),
        peak_memory_bytes=finished.peak_memory_bytes,
        activation_memory_bytes=finished.activation_memory_bytes,
        weights_bytes=finished.weights_bytes,
        bytes_moved=finished.bytes_moved,
    )


def _tuned_here(engine: Manifest, gpu: str, target: str) -> Manifest:
    """Return the manifest of an engine that was tuned on this machine's GPU."""
    assert engine.build is not None
    return dataclasses.replace(engine, build=dataclasses.replace(engine.build, gpu=gpu, targets=(target,)))
