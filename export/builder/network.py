"""The library's network from the ONNX file, compared with the manifest."""

from __future__ import annotations

from upfusion.export.builder.binding import trt
from upfusion.export.builder.failures import error_from_messages, error_from_node
from upfusion.export.builder.logger import BuildLogger
from upfusion.export.builder.messages import Request, Shape, TensorRequest
from upfusion.runtime.errors import ArtifactError


class ParsedNetwork:
    """A network and the parser that owns its weights: both must live until the plan is built."""

    def __init__(self, network: trt.INetworkDefinition, parser: trt.OnnxParser) -> None:
        self.network = network
        self.parser = parser


def network_from_onnx(builder: trt.Builder, request: Request, logger: BuildLogger) -> ParsedNetwork:
    """Return the strongly typed network: every precision is the graph's, none is the builder's choice.

    The flag is needed on TensorRT 10 and ignored where networks always are strongly typed. The file is parsed by
    its path, which is what finds weights outside of it.

    Raises:
        ArtifactError: the file is no ONNX, is truncated, lacks its weights, or is not what its manifest says.
        BuildError: a node cannot be imported.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.onnx):
        _raise_parser_error(parser, request, logger)
    if network.num_outputs == 0:  # the parser takes arbitrary bytes for a model without nodes
        raise ArtifactError(f"{request.onnx} is not an ONNX graph", "export it again: upfusion export")
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    _compare(request.onnx, "input", request.inputs, inputs)
    _compare(request.onnx, "output", request.outputs, outputs)
    return ParsedNetwork(network, parser)


def shape_of(tensor: trt.ITensor) -> Shape:
    """Return a tensor's sizes, -1 where they vary."""
    return tuple(tensor.shape[axis] for axis in range(len(tensor.shape)))


def _raise_parser_error(parser: trt.OnnxParser, request: Request, logger: BuildLogger) -> None:
    """Raise what the parser's first error means."""
    missing = [message for message in logger.errors if "WeightsContext" in message]
    if missing:
        raise ArtifactError(
            f"{request.onnx}: its weights lie in another file that is missing or too short: "
            f"{missing[0].split(': ', 1)[-1]}",
            "copy the .data file together with the .onnx, or export it again",
        )
    if parser.num_errors == 0:
        raise error_from_messages(f"{request.onnx} cannot be parsed", logger.errors)
    error = parser.get_error(0)
    code = str(error.code()).rpartition(".")[2]
    if code == "MODEL_DESERIALIZE_FAILED":
        raise ArtifactError(
            f"{request.onnx} is not a complete ONNX file", "it is truncated or foreign: export it again"
        )
    raise error_from_node(request.onnx, code, error.node_name(), error.node_operator(), error.desc())


def _compare(onnx: str, role: str, wanted: tuple[TensorRequest, ...], found: list[trt.ITensor]) -> None:
    """Check names, types and shapes against the manifest's contract; further outputs do no harm.

    Raises:
        ArtifactError: they differ.
    """
    by_name = {tensor.name: tensor for tensor in found}
    names = {tensor.name for tensor in wanted}
    if names != by_name.keys() and not (role == "output" and names < by_name.keys()):
        raise ArtifactError(
            f"{onnx} has the {role}s {', '.join(sorted(by_name))}; its manifest names {', '.join(sorted(names))}",
            "the manifest is another file's: export again",
        )
    for tensor in wanted:
        there = by_name[tensor.name]
        shape = shape_of(there)
        fits = len(shape) == len(tensor.minimum) and all(
            side in (-1, low) and (side == -1 or low == high)
            for side, low, high in zip(shape, tensor.minimum, tensor.maximum, strict=True)
        )
        if there.dtype != _data_type(tensor.dtype) or (role == "input" and not fits):
            raise ArtifactError(
                f"{onnx}: {role} {tensor.name} is {there.dtype.name} {shape}; its manifest says "
                f"{tensor.dtype} {tensor.minimum} to {tensor.maximum}",
                "the manifest is another file's: export again",
            )


def _data_type(name: str) -> trt.DataType:
    """Return the library's type for numpy's name of it."""
    return {
        "float32": trt.DataType.FLOAT,
        "float16": trt.DataType.HALF,
        "uint8": trt.DataType.UINT8,
        "int32": trt.DataType.INT32,
        "int64": trt.DataType.INT64,
        "bool": trt.DataType.BOOL,
    }[name]
