from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from upfusion.export.simplify import simplify

SHAPE = (2, 6, 7)


def model_of(nodes, outputs=("y",), **constants):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def slices(name, source, target, axis):
    return helper.make_node("Slice", [source, "from", "to", f"axis{axis}", "step"], [target], name=name)


CONSTANTS = {"from": [1], "to": [5], "step": [1], "axis1": [1], "axis2": [2]}


@pytest.mark.parametrize(
    ("nodes", "outputs", "kinds"),
    [
        ([slices("a", "x", "t", 1), slices("b", "t", "y", 2)], ("y",), ["Slice"]),
        # The same axis twice, and a value that somebody else reads, stay as they are.
        ([slices("a", "x", "t", 1), slices("b", "t", "y", 1)], ("y",), ["Slice", "Slice"]),
        ([slices("a", "x", "t", 1), slices("b", "t", "y", 2)], ("y", "t"), ["Slice", "Slice"]),
        (
            [
                helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
                helper.make_node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
                helper.make_node("Relu", ["u"], ["y"]),
            ],
            ("y",),
            ["Relu"],
        ),
    ],
)
def test_outputs_stay_and_nodes_go(nodes, outputs, kinds):
    proto = model_of(nodes, outputs, **CONSTANTS)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    model = ir.serde.deserialize_model(proto)
    simplify(model)
    assert [node.op_type for node in model.graph] == kinds
    simplified = ir.serde.serialize_model(model).SerializeToString()
    got = ort.InferenceSession(simplified).run(None, {"x": x})
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
