"""Where two graphs of one network part: their residual blocks, compared one by one with Polygraphy."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from upfusion.export.accuracy.half_graph import emulate_half
from upfusion.export.onnx_file import read_onnx
from upfusion.export.simplify import SCOPES_KEY
from upfusion.runtime.decisions import decides_nothing
from upfusion.runtime.errors import ArtifactError, InputError, MissingDependencyError
from upfusion.runtime.images import prepare
from upfusion.runtime.manifest import Manifest, read_manifest
from upfusion.runtime.pairs import Pair, read_pair

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

Where = Literal["onnxruntime", "tensorrt"]

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2}
"""Largest difference of a block, as a share of its largest value, that is still arithmetic. fp32: ten times what
reordered sums cost over the whole network; fp16: ten times a rounding step (2^-11) with as much again for what a
block's thirty operations add. A channel at another place makes a difference as large as the values themselves."""

BLOCKS = (
    (re.compile(r"\bencode\.levels\.(\d+)\.(\d+)$"), "encoders.{}.{}"),
    (re.compile(r"\bencoders_visible\.(\d+)\.(\d+)$"), "encoders.{}.{}"),
    (re.compile(r"\bencoders_infrared\.(\d+)\.(\d+)$"), "encoders.{}.{}"),
    (re.compile(r"\bperturbations\.(\d+)$"), "perturbations.{}"),
    (re.compile(r"\bdecoders\.(\d+)\.(\d+)$"), "decoders.{}.{}"),
    (re.compile(r"\brefinement\.(\d+)$"), "refinement.{}"),
)
"""Module path of a residual block -> its name. Both encoders' blocks of a place are one, visible channels first."""


ORDERS = {f"perturbations.{level}": f"tcpm{level + 1}.order" for level in range(4)}
"""The decision that each of these blocks begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDifference:
    """One block of both graphs on one pair."""

    name: str
    largest: float
    """Largest magnitude in the reference."""
    max_difference: float
    mean_difference: float
    tolerance: float
    """Largest difference allowed, in the block's own units."""
    agrees: bool
    moved: int
    """Places of the block's channel order that the two graphs fill differently; 0 where it ranks nothing."""


def compare_layers(artifact: Path, reference: Path, pair: Pair, where: Where = "onnxruntime") -> list[BlockDifference]:
    """Return every residual block's difference between two graphs of one network, in graph order.

    Of graphs that take planes also the image's.

    Both run through Polygraphy. In ONNX Runtime, half edges are rounded as a GPU stores them
    (``export.accuracy.half_graph``).

    Args:
        artifact: the ONNX file under test.
        reference: the ONNX file it is compared with.
        pair: images of a size that both take.
        where: what runs ``artifact``; the reference always runs in ONNX Runtime on the CPU.

    Raises:
        ArtifactError: not an ONNX file of ours, or other weights, or graphs that note no modules.
        InputError: a graph does not take this pair, or takes several at a time.
        MissingDependencyError: Polygraphy or TensorRT is not installed.
    """
    try:
        from polygraphy.comparator import Comparator, CompareFunc
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise MissingDependencyError("comparing layers needs Polygraphy", "pip install 'upfusion[verify]'") from error
    manifests = [_manifest_of(path) for path in (artifact, reference)]
    if manifests[0].source.sha256 != manifests[1].source.sha256:
        raise ArtifactError(
            f"{artifact.name} and {reference.name} were exported from different checkpoints: "
            f"{manifests[0].source.name} and {manifests[1].source.name}",
            "export both from one checkpoint",
        )
    feeds = [_feed(pair, manifest, path) for manifest, path in zip(manifests, (artifact, reference), strict=True)]
    marked = [mark_blocks(read_onnx(path)) for path in (artifact, reference)]
    common = _outputs(marked[0]) - set(ORDERS.values())
    if any(manifest.contract.io == "image" for manifest in manifests):
        common.discard(manifests[1].contract.outputs[0].name)  # bytes, whose differences wrap around
    names = [output.name for output in marked[1].graph.output if output.name in common]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        runners = (_runner(marked[0], artifact.name, where), _runner(marked[1], reference.name, "onnxruntime"))
        results = Comparator.run([runners[0]], data_loader=feeds[:1])
        results.extend(Comparator.run([runners[1]], data_loader=feeds[1:]))
        wanted = results[1][1][0]
        share = TOLERANCES["fp16" if "fp16" in {manifest.precision for manifest in manifests} else "fp32"]
        largest = {name: float(np.abs(wanted[name]).max()) for name in names}
        allowed = {name: share * largest[name] for name in names}
        compare = CompareFunc.simple(atol=allowed, rtol=0.0, check_error_stat="max", fail_fast=False)
        compared = compare(results[0][1][0], wanted)
    return [
        BlockDifference(
            name=name,
            largest=largest[name],
            max_difference=float(compared[name].max_absdiff),
            mean_difference=float(compared[name].mean_absdiff),
            tolerance=allowed[name],
            agrees=bool(compared[name]),
            moved=_moved(name, results[0][1][0], wanted),
        )
        for name in names
    ]


def first_parting(blocks: list[BlockDifference]) -> BlockDifference | None:
    """Return the first block beyond its tolerance, None if all agree."""
    return next((block for block in blocks if not block.agrees), None)


def mark_blocks(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every residual block's result as a float32 output, before the image.

    Raises:
        ArtifactError: the graph does not say which modules its nodes come from.
    """
    found: dict[str, dict[str, str]] = {}
    for node in model.graph.node:
        noted = next((note.value for note in node.metadata_props if note.key == SCOPES_KEY), "[]")
        for scope in ast.literal_eval(noted)[:-1]:
            for pattern, name in BLOCKS:
                if match := pattern.search(scope):
                    # The last node of a module gives its result; visible blocks come before infrared ones.
                    found.setdefault(name.format(*match.groups()), {})[scope] = node.output[0]
    if not found:
        raise ArtifactError("the graph notes no modules on its nodes", "export it again with upfusion export")
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    image = marked.graph.output[0]
    del marked.graph.output[:]
    for name, parts in found.items():
        values = list(parts.values())
        if len(values) > 1:
            marked.graph.node.append(helper.make_node("Concat", values, [f"{name}.both"], axis=1))
            values = [f"{name}.both"]
        marked.graph.node.append(helper.make_node("Cast", values, [name], to=TensorProto.FLOAT))
        marked.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    marked.graph.output.append(image)
    made = {name for node in model.graph.node for name in node.output}
    for order in ORDERS.values():
        if order in made:
            marked.graph.output.append(helper.make_tensor_value_info(order, TensorProto.INT64, None))
    return marked


def _moved(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> int:
    """Return how many places of a block's order differ."""
    order = ORDERS.get(name, "")
    return int((first[order] != second[order]).sum()) if order in first and order in second else 0


def _outputs(model: onnx.ModelProto) -> set[str]:
    return {output.name for output in model.graph.output}


def _manifest_of(path: Path) -> Manifest:
    if path.suffix != ".onnx":
        raise ArtifactError(f"{path} is no ONNX file: an engine's inner values cannot be read", "name two .onnx files")
    manifest = read_manifest(path)
    if manifest.contract.decision_inputs:
        raise decides_nothing(path)
    return manifest


def _feed(pair: Pair, manifest: Manifest, path: Path) -> dict[str, NDArray[Any]]:
    """Return the pair as a graph takes it."""
    contract, images = manifest.contract, read_pair(pair)
    inputs: tuple[NDArray[Any], ...] = prepare(*images)
    height, width = inputs[0].shape[2:] if contract.io == "tensor" else images[0].shape[:2]
    if contract.batch != 1:
        raise InputError(f"{path.name} takes {contract.batch} pairs at a time", "export it with --batch 1 for this")
    if not contract.sizes.holds(height, width):
        raise InputError(
            f"pair {pair.name} is {height}x{width}, {path.name} takes {contract.sizes.minimum} to "
            f"{contract.sizes.maximum}",
            "name a pair of a size that both take",
        )
    if contract.io == "image":
        first, second = images
        if first.dtype != np.uint8 or second.dtype != np.uint8 or second.ndim != 2:
            raise InputError(f"{path.name} takes 8-bit images, the infrared one gray", "name another pair")
        coloured = first if first.ndim == 3 else np.repeat(first[..., None], 3, axis=2)
        if "BGR" in contract.inputs[0].meaning:
            coloured = coloured[..., ::-1]
        inputs = (np.ascontiguousarray(coloured)[None], second[None])
    return {spec.name: value for spec, value in zip(contract.inputs, inputs, strict=True)}


def _runner(model: onnx.ModelProto, name: str, where: Where) -> BaseRunner:
    """Return a Polygraphy runner; on the CPU with half edges rounded."""
    if where == "tensorrt":
        return _tensorrt_runner(model, name)
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    emulated = emulate_half(model, ranges=False).model
    session = SessionFromOnnx(emulated.SerializeToString(), providers=["CPUExecutionProvider"])
    return OnnxrtRunner(session, name=name)


def _tensorrt_runner(model: onnx.ModelProto, name: str) -> Any:
    """Return a runner that builds the marked graph, strongly typed, for the GPU of this machine."""
    if importlib.util.find_spec("tensorrt") is None:  # Polygraphy would look for it only when it builds
        raise MissingDependencyError(
            "running layers in TensorRT needs the tensorrt package",
            "pip install 'upfusion[tensorrt]', or leave --layers-on out",
        )
    from polygraphy.backend.trt import EngineFromNetwork, NetworkFromOnnxBytes, TrtRunner

    network = NetworkFromOnnxBytes(model.SerializeToString(), strongly_typed=True)
    return TrtRunner(EngineFromNetwork(network), name=name)
