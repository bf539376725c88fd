"""The emulation of half-precision ONNX graphs on ONNX Runtime's CPU provider."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from upfusion.export.accuracy.half_graph import emulate_half

SHAPE = (1, 8, 16, 16)


def half_chain(scale: float) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """Return conv -> erf -> times itself -> conv in half between float32 edges, and its weights."""
    generator = np.random.default_rng(0)
    weights = [(generator.standard_normal((8, 8, 3, 3)) * 0.2).astype(np.float16) for _ in range(2)]
    constants = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    constants.append(numpy_helper.from_array(np.float16(scale), "scale"))
    nodes = [
        helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["xh", "scale"], ["s"]),
        helper.make_node("Conv", ["s", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Erf", ["a"], ["e"]),
        helper.make_node("Mul", ["a", "e"], ["m"]),
        helper.make_node("Conv", ["m", "w1"], ["b"], pads=[1] * 4),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), weights


def run(model: onnx.ModelProto, x: np.ndarray, names: list[str] | None = None) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, {"x": x})


def expected(x: np.ndarray, weights: list[np.ndarray], scale: float, *, rounded: bool) -> np.ndarray:
    def edge(value: torch.Tensor) -> torch.Tensor:
        return value.half().float() if rounded else value

    first, second = (torch.from_numpy(weight).float() for weight in weights)
    scaled = edge(torch.from_numpy(x).half().float() * np.float32(np.float16(scale)))
    a = edge(F.conv2d(scaled, first, padding=1))
    return edge(F.conv2d(edge(a * edge(torch.erf(a))), second, padding=1)).numpy()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


def test_onnx_runtime_alone_rounds_no_edge(x):
    """Why the emulation exists: if this fails, the CPU provider has learned half and the emulation may go."""
    model, weights = half_chain(1.0)
    (got,) = run(model, x)
    # Up to the order of float32 sums, and the last cast, the chain was computed in float32.
    wide = expected(x, weights, 1.0, rounded=False)
    assert np.abs(got - wide).max() <= 2**-10 * np.abs(wide).max()
    rounded = expected(x, weights, 1.0, rounded=True)
    assert np.mean(np.abs(got - rounded) > np.abs(got - wide)) > 0.5


def test_the_emulation_rounds_every_edge(x):
    model, weights = half_chain(1.0)
    graph = emulate_half(model)
    (got,) = run(graph.model, x, ["y"])
    rounded = expected(x, weights, 1.0, rounded=True)
    # Two float32 sums in another order can fall on both sides of a rounding edge: one step of half, rarely.
    assert np.mean(got != rounded) < 0.02
    assert np.abs(got - rounded).max() <= 2**-10 * np.abs(rounded).max()
    assert set(graph.extremes) == {"xh", "s", "a", "e", "m", "b"}


def test_overflow_shows_in_the_emulation_only(x):
    model, _ = half_chain(60000.0)
    (silent,) = run(model, x)
    assert np.isfinite(silent).any()
    graph = emulate_half(model)
    names = ["y", *graph.extremes["s"]]
    got, largest, smallest = run(graph.model, x, names)
    assert not np.isfinite(got).any()
    assert largest == pytest.approx(x.max() * 60000, rel=1e-3)
    assert smallest == pytest.approx(x.min() * 60000, rel=1e-3)


def test_named_inner_values_become_outputs(x):
    model, _ = half_chain(1.0)
    graph = emulate_half(model, decisions=("a", "not there"))
    assert [output.name for output in graph.model.graph.output][:2] == ["y", "a"]
    y, a = run(graph.model, x, ["y", "a"])
    assert a.dtype == np.float32
    assert a.shape == y.shape


def test_a_float32_graph_is_left_as_it_is(x):
    model, _ = half_chain(1.0)
    once = emulate_half(model).model
    again = emulate_half(once)
    # Its own casts to half and back are the only half values left, and casts round nothing new.
    assert np.array_equal(run(once, x, ["y"])[0], run(again.model, x, ["y"])[0])
