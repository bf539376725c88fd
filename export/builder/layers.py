"""What an engine's layers read and write, from the lines in which the builder lists them."""

from __future__ import annotations

import math
import re

ITEM_BYTES = {"Half": 2, "BFloat16": 2, "Float": 4, "Int32": 4, "Int64": 8, "Bool": 1, "UInt8": 1, "Int8": 1, "FP8": 1}
_TENSOR = re.compile(r"\{ Name: ([^,]+), Dimensions: \[([-\d,]*)\][^}]*?Datatype: (\w+)")


def bytes_moved(message: str) -> int | None:
    """Return the bytes of the inputs and outputs of all layers that a message lists.

    None if sizes vary, or a type is not known. Constants are not counted: they are the same for every size of image.
    TensorRT-RTX lists its layers when a build with detailed profiling ends, in lines like
    ``Name: conv1, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,3,8,8], ..., Datatype: Half, ... } ],
    Constants: [...], Outputs: [...], ...``.
    """
    moved = [_of_layer(line) for line in message.splitlines() if line.startswith("Name: ") and ", LayerType: " in line]
    known = [each for each in moved if each is not None]
    return sum(known) if len(known) == len(moved) else None


def _of_layer(line: str) -> int | None:
    """Return the bytes of one layer's inputs and outputs, each once."""
    inputs, _, rest = line.partition(", Constants: [")
    outputs = rest.partition("], Outputs: [")[2]
    tensors = {name: (shape, kind) for part in (inputs, outputs) for name, shape, kind in _TENSOR.findall(part)}
    if any("-" in shape or kind not in ITEM_BYTES for shape, kind in tensors.values()):
        return None
    return sum(
        math.prod(int(side) for side in shape.split(",") if side) * ITEM_BYTES[kind] for shape, kind in tensors.values()
    )
