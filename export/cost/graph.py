"""An ONNX graph with the shape and type of every tensor at one size."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper, shape_inference
from onnxscript import optimizer

from upfusion.export.onnx_file import read_onnx
from upfusion.runtime.errors import ArtifactError
from upfusion.runtime.manifest import METADATA_KEY, Manifest

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the modules that a node comes from."""
_SMALL = 4096
"""Constants of up to this many bytes stay in the graph while shapes are inferred: shapes, axes, scalars."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and element size."""

    shape: tuple[int, ...]
    item_bytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.size * self.item_bytes


@dataclass(frozen=True, slots=True)
class Node:
    """One operation."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scopes: tuple[str, ...]
    """Module paths, outermost first; empty where the exporter noted none."""
    attributes: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in order, tensors by name."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    weights: frozenset[str]
    """Names of constants."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size: tuple[int, int]
    """Height and width that the shapes are for."""
    precision: str
    rewrites: tuple[str, ...] = field(default=())

    def weight_bytes(self) -> int:
        """Return the bytes of all constants."""
        return sum(self.tensors[name].nbytes for name in self.weights)


def read_graph(path: str | Path, size: tuple[int, int] | None = None) -> Graph:
    """Read an ONNX file and infer every shape.

    Args:
        path: the ``.onnx`` file.
        size: height and width of the inputs where they vary; None takes the manifest's optimum.

    Raises:
        ArtifactError: no ONNX, or shapes that cannot be inferred.
    """
    path = Path(path)
    model = read_onnx(path)
    manifest = _manifest_of(model)
    weights = _lift_weights(model)
    found = _fix_inputs(model, weights, size or (manifest.contract.sizes.optimum if manifest else None), path)
    tensors = _inferred(model, path)
    graph = model.graph
    if any(name and name not in tensors for node in graph.node for name in node.output):
        tensors |= _inferred_with_numbers(model, path)
    constants = {value.name for value in graph.initializer} | weights
    nodes = tuple(map(_node, graph.node))
    missing = [name for node in nodes for name in node.outputs if name and name not in tensors]
    if missing:
        raise ArtifactError(f"{path}: no shape for {missing[0]} and {len(missing) - 1} others", "export it again")
    return Graph(
        nodes=nodes,
        tensors=tensors,
        weights=frozenset(constants),
        inputs=tuple(value.name for value in graph.input if value.name not in weights),
        outputs=tuple(value.name for value in graph.output),
        size=found,
        precision=manifest.precision if manifest else "unknown",
        rewrites=manifest.rewrites if manifest else (),
    )


def _inferred(model: onnx.ModelProto, path: Path) -> dict[str, Tensor]:
    """Return every tensor whose shape ONNX can tell.

    Raises:
        ArtifactError: the shapes contradict each other.
    """
    try:
        model = shape_inference.infer_shapes(model, data_prop=True)
    except shape_inference.InferenceError as error:
        raise ArtifactError(f"{path}: shapes cannot be inferred: {error}", "export it again") from error
    constants = {
        value.name: Tensor(tuple(value.dims), _item_bytes(value.data_type)) for value in model.graph.initializer
    }
    return dict(_tensors(model)) | constants


def _inferred_with_numbers(model: onnx.ModelProto, path: Path) -> dict[str, Tensor]:
    """Return the same after the arithmetic on sizes was done: ONNX's inference does not follow divisions.

    The numbers that this arithmetic passes through are counted as one int64 each.
    """
    folded = ir.from_proto(model)
    optimizer.fold_constants(folded, onnx_shape_inference=True)
    rest: onnx.ModelProto = ir.to_proto(folded)
    left = {name for node in rest.graph.node for name in node.output}
    numbers = {name: Tensor((1,), 8) for node in model.graph.node for name in node.output if name and name not in left}
    return numbers | _inferred(rest, path)


def _manifest_of(model: onnx.ModelProto) -> Manifest | None:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return Manifest.from_json(entry.value, where="the graph's metadata")
    return None


def _lift_weights(model: onnx.ModelProto) -> set[str]:
    """Turn large constants into inputs of the same shape, so that shape inference need not copy them."""
    graph = model.graph
    small, lifted = [], set()
    for value in graph.initializer:
        if math.prod(value.dims) * _item_bytes(value.data_type) <= _SMALL:
            small.append(onnx.TensorProto.FromString(value.SerializeToString()))
            continue
        graph.input.append(onnx.helper.make_tensor_value_info(value.name, value.data_type, list(value.dims)))
        lifted.add(value.name)
    del graph.initializer[:]
    graph.initializer.extend(small)
    return lifted


def _fix_inputs(model: onnx.ModelProto, weights: set[str], size: tuple[int, int] | None, path: Path) -> tuple[int, int]:
    """Give every varying input side a number; return height and width."""
    found: tuple[int, int] | None = None
    for value in model.graph.input:
        if value.name in weights:
            continue
        sides = value.type.tensor_type.shape.dim
        image = value.type.tensor_type.elem_type == TensorProto.UINT8
        first = 1 if image else 2  # NHWC or NHW against NCHW
        for offset, side in enumerate(sides[first : first + 2]):
            if side.dim_param or not side.dim_value:
                if size is None:
                    raise ArtifactError(f"{path}: height and width vary, and no manifest names a size", "give --size")
                side.dim_value = size[offset]
        found = found or (sides[first].dim_value, sides[first + 1].dim_value)
    if found is None:
        raise ArtifactError(f"{path} has no inputs", "name a file that upfusion export wrote")
    if size is not None and found != size:
        raise ArtifactError(f"{path} has the fixed size {found[0]}x{found[1]}", "leave --size away")
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return found


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[str, Tensor]]:
    graph = model.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        sides = [side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim]
        if kind.HasField("shape") and None not in sides:
            yield value.name, Tensor(tuple(side for side in sides if side is not None), _item_bytes(kind.elem_type))


def _node(proto: onnx.NodeProto) -> Node:
    noted = next((entry.value for entry in proto.metadata_props if entry.key == SCOPES_KEY), "[]")
    attributes = {
        attribute.name: numpy_helper.to_array(attribute.t)
        if attribute.type == onnx.AttributeProto.TENSOR
        else onnx.helper.get_attribute_value(attribute)
        for attribute in proto.attribute
    }
    scopes = tuple(scope for scope in ast.literal_eval(noted)[:-1] if scope)
    return Node(proto.op_type, proto.name, tuple(proto.input), tuple(proto.output), scopes, attributes)


def _item_bytes(data_type: int) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
