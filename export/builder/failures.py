"""What a library's error messages mean for the user, and what to do about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from upfusion.runtime.errors import BuildError, DeviceError, UPFusionError


@dataclass(frozen=True, slots=True)
class _Remedy:
    pattern: str
    """Searched in the messages, ignoring case."""
    kind: type[UPFusionError]
    hint: str


_REMEDIES = (
    _Remedy(
        r"workspace limit|insufficient (memory|workspace)",
        BuildError,
        "give the builder more room with a larger --workspace, or leave the option away (all device memory)",
    ),
    _Remedy(
        r"Turing \(SM75\)",
        BuildError,
        "TensorRT-RTX has no FP32 matrix product for Turing: leave sm75 out of --target, and build on the Turing "
        "GPU itself with --builder tensorrt",
    ),
    _Remedy(
        r"out ?of ?memory|cudaError 2\b|FAILED_ALLOCATION|cuMemAlloc",
        DeviceError,
        "close what else runs on the GPU, give a smaller --workspace, or export for a smaller size",
    ),
    _Remedy(
        r"cudaError (35|100|101)\b|no CUDA-capable device|driver version is insufficient|CUDA initialization failure",
        DeviceError,
        "this needs a working NVIDIA GPU and driver (see: upfusion doctor); "
        "without one use --builder tensorrt-rtx --target sm86",
    ),
)
_UNKNOWN = "run again with --verbose for the builder's whole log"

_NODE_REMEDIES = {
    "UNSUPPORTED_NODE": "this library has no importer for that operator: update the library, or export again",
    "UNSUPPORTED_NODE_ATTR": "an attribute of the node is not supported: update the library, or export again",
    "UNSUPPORTED_NODE_DATATYPE": "the node's type is not supported: export with another --precision",
    "UNSUPPORTED_NODE_DYNAMIC": "the node cannot have a dynamic shape: export with a fixed --size",
    "UNSUPPORTED_NODE_SHAPE": "the node's shape is not supported: export with another --size",
    "INVALID_NODE": "the graph is not strongly typed, or damaged: export it again",
    "INVALID_GRAPH": "the graph is damaged: export it again",
}


def error_from_messages(what: str, messages: Sequence[str]) -> UPFusionError:
    """Return the error for a build that failed after these messages of the library.

    The first message is the cause; the later ones are its consequences.
    """
    cause = readable(messages[0]) if messages else "the library gave no reason"
    for remedy in _REMEDIES:
        if re.search(remedy.pattern, cause, re.IGNORECASE):
            return remedy.kind(f"{what}: {cause}", remedy.hint)
    return BuildError(f"{what}: {cause}", _UNKNOWN)


def error_from_node(onnx: str, code: str, name: str, operator: str, description: str) -> BuildError:
    """Return the error for a node that the parser refused; ``code`` is the library's name of the kind of error."""
    where = f"node {name or '(unnamed)'} ({operator})" if operator else "the graph"
    # The first line may only say which node; the lines after the cause are its consequences.
    reasons = [readable(line) for line in description.splitlines()]
    reason = next((line for line in reasons if line and not line.startswith("Invalid Node - ")), "false")
    if reason == "false":  # the importers' checkers say no more
        reason = code.lower().replace("_", " ")
    return BuildError(f"{onnx}: {where} cannot be imported: {reason}", _NODE_REMEDIES.get(code, _UNKNOWN))


def readable(message: str) -> str:
    """Return a library's message without source positions and without the function that reports it."""
    text = " ".join(message.split())
    text = re.sub(r"\s*In \w+ at /?_?src/\S+?:\d+", "", text)
    text = re.sub(r"^\w+::\w+: Error Code \d+: ", "", text)
    text = re.sub(r"^\[\w+\.cpp:+\w+:+\d+\] Error Code \d+: ", "", text)
    text = re.sub(r"^(Myelin|API Usage Error|Internal Error|Cuda Runtime) \((.*)\)$", r"\2", text)
    text = re.sub(r"\[\w+\.cpp:\d+: \w+\] ", "", text)
    text = re.sub(r"^Assertion failed: \S.*?\): ", "", text)
    return text.strip()
