"""Counts of small graphs against what is worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from upfusion.export.cost import cost_of, gpu_named, read_graph
from upfusion.export.cost.kernels import SHORT, kernels_of
from upfusion.runtime.errors import ArtifactError, InputError

H, W, C = 8, 16, 4
MAP = C * H * W * 4
"""Bytes of a float32 map of C channels."""


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], outputs: list[str], dynamic=False):
    """Write a graph with one input ``x`` (1, C, H, W)."""
    sides = [1, C, "height", "width"] if dynamic else [1, C, H, W]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def conv(name: str, source: str, weight: str, **attributes) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [name], name=name, **attributes)


POINTWISE = {"w": np.zeros((C, C, 1, 1), np.float32)}


def test_a_residual_block_is_one_kernel(tmp_path):
    """Conv, Gelu and Add: x and the weight are read, the sum is written; without fusion every step is."""
    nodes = [
        conv("y", "x", "w"),
        helper.make_node("Gelu", ["y"], ["g"]),
        helper.make_node("Add", ["g", "x"], ["z"]),
    ]
    cost = cost_of(read_graph(save(tmp_path / "g.onnx", nodes, POINTWISE, ["z"])))
    weight = C * C * 4
    assert cost.total.kernels == 1
    assert cost.total.nodes == 3
    assert cost.total.bytes_fused == 2 * MAP + weight
    assert cost.total.bytes_unfused == (2 + 2 + 3) * MAP + weight
    assert cost.total.flops == 2 * C * C * H * W + 2 * C * H * W
    assert cost.total.weight_bytes == weight
    assert cost.peak_bytes == 2 * MAP
    assert cost.node_kinds == {"Conv": 1, "Gelu": 1, "Add": 1}


def test_halves_of_a_convolution_are_gated_by_a_second_kernel(tmp_path):
    weights = {"w": np.zeros((2 * C, C, 1, 1), np.float32)}
    nodes = [
        conv("y", "x", "w"),
        helper.make_node("Split", ["y"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Gelu", ["a"], ["g"]),
        helper.make_node("Mul", ["g", "b"], ["z"]),
    ]
    graph = read_graph(save(tmp_path / "g.onnx", nodes, weights, ["z"]))
    first, second = kernels_of(graph)
    assert (first.reads, first.writes) == ({"x", "w"}, {"y"})
    assert (second.reads, second.writes) == ({"a", "b"}, {"z"})
    # y is read whole, so two maps go in and one comes out; it lives beside x, then beside z.
    assert cost_of(graph).total.bytes_fused == (1 + 2) * MAP + 2 * C * C * 4 + (2 + 1) * MAP
    assert cost_of(graph).peak_bytes == 3 * MAP


def test_a_norm_node_is_one_pass_and_a_spelled_one_is_not(tmp_path):
    node = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("LayerNormalization", ["t", "s"], ["n"], axis=-1),
        helper.make_node("Transpose", ["n"], ["z"], perm=[0, 3, 1, 2]),
    ]
    scale = {"s": np.ones(C, np.float32)}
    one = cost_of(read_graph(save(tmp_path / "one.onnx", node, scale, ["z"])))
    assert one.total.bytes_fused == 2 * MAP + C * 4
    spelled = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"]),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["q"]),
        helper.make_node("ReduceMean", ["q", "axes"], ["v"]),
        helper.make_node("Sqrt", ["v"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["z"]),
    ]
    axes = {"axes": np.array([1], np.int64)}
    many = cost_of(read_graph(save(tmp_path / "many.onnx", spelled, axes, ["z"])))
    plane = H * W * 4
    # deviations and the root of their variance: x in, d and r out; the rest: d and r in, z out; and the 8 bytes of
    # the axes
    assert many.total.bytes_fused == 4 * MAP + 2 * plane + 8
    assert many.total.kernels == 2


def test_a_long_reduction_ends_its_kernel(tmp_path):
    """The L2 norm of a map, from a half copy: the wide copy is written once, for the norm and for the division."""
    side = SHORT // W
    axes = {"axes": np.array([2, 3], np.int64), "w": np.zeros((C, C, 1, 1), np.float32)}
    nodes = [
        conv("y", "x", "w"),
        helper.make_node("Cast", ["y"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceL2", ["f", "axes"], ["n"]),
        helper.make_node("Div", ["f", "n"], ["z"]),
    ]
    for height, kernels in ((side, 2), (2 * side, 3)):
        graph = read_graph(save(tmp_path / f"{height}.onnx", nodes, axes, ["z"], dynamic=True), (height, W))
        made = [[node.kind for node in kernel.nodes] for kernel in kernels_of(graph)]
        assert made[0] == ["Conv", "Cast"]
        assert len(made) == kernels
        assert [kernel.writes for kernel in kernels_of(graph)][1:] == ([{"z"}] if kernels == 2 else [{"f", "n"}, {"z"}])


def test_only_the_last_two_axes_swap_for_free(tmp_path):
    shape = {"shape": np.array([1, C, H * W], np.int64)}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["f"]),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["f", "t"], ["z"]),
    ]
    cost = cost_of(read_graph(save(tmp_path / "g.onnx", nodes, shape, ["z"])))
    assert cost.total.kernels == 1
    assert cost.total.bytes_fused == MAP + C * C * 4
    assert cost.total.flops == 2 * C * C * H * W


def test_roofline_is_the_slower_of_arithmetic_and_memory(tmp_path):
    path = save(tmp_path / "g.onnx", [conv("y", "x", "w")], POINTWISE, ["y"])
    gpu = gpu_named("rtx4090")
    cost = cost_of(read_graph(path), gpu)
    moved, done = cost.total.bytes_fused / (1008 * 1e9), cost.total.flops / (82.6 * 1e12)
    assert cost.total.roofline_ms == pytest.approx(1e3 * max(moved, done))
    assert cost.gpu == "RTX 4090"


def test_varying_sizes_need_a_size(tmp_path):
    path = save(tmp_path / "g.onnx", [conv("y", "x", "w")], POINTWISE, ["y"], dynamic=True)
    with pytest.raises(ArtifactError, match="no manifest names a size"):
        read_graph(path)
    assert read_graph(path, (H, W)).tensors["y"].shape == (1, C, H, W)


def test_another_size_than_the_graph_has_is_refused(tmp_path):
    path = save(tmp_path / "g.onnx", [conv("y", "x", "w")], POINTWISE, ["y"])
    with pytest.raises(ArtifactError, match="fixed size 8x16"):
        read_graph(path, (16, 16))


def test_what_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "fusion.onnx"
    path.write_bytes(b"\x08\x09 not a graph")
    with pytest.raises(ArtifactError, match=r"fusion\.onnx"):
        read_graph(path)


def test_unknown_gpus_are_refused_with_the_known_ones():
    with pytest.raises(InputError) as refused:
        gpu_named("Voodoo 2")
    assert "H200" in refused.value.hint


def test_sizes_that_are_divided(tmp_path):
    """ONNX's shape inference does not follow a division; the arithmetic is done first, its nodes still count."""
    nodes = [
        helper.make_node("Shape", ["x"], ["height"], start=2, end=3),
        helper.make_node("Div", ["height", "two"], ["half"]),
        helper.make_node("Slice", ["x", "zero", "half", "two"], ["y"]),
    ]
    numbers = {"two": np.array([2], np.int64), "zero": np.array([0], np.int64)}
    path = save(tmp_path / "g.onnx", nodes, numbers, ["y"], dynamic=True)
    graph = read_graph(path, (H, W))
    assert graph.tensors["y"].shape == (1, C, H // 2, W)
    assert cost_of(graph).total.nodes == 3


def test_a_narrowing_cast_is_written_narrow(tmp_path):
    """Cast, norm and cast back are one kernel; two convolutions read its result in half."""
    half = {"w": np.zeros((C, C, 1, 1), np.float16), "s": np.ones(W, np.float32)}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "s"], ["n"], axis=-1),
        helper.make_node("Cast", ["n"], ["h"], to=TensorProto.FLOAT16),
        conv("y", "h", "w"),
        conv("z", "h", "w"),
    ]
    graph = read_graph(save(tmp_path / "g.onnx", nodes, half, ["y", "z"]))
    norm, *convolutions = kernels_of(graph)
    assert norm.writes == {"h"}
    assert [kernel.reads for kernel in convolutions] == [{"h", "w"}] * 2
    weights = 2 * C * C * 2 + W * 4
    assert cost_of(graph).total.bytes_fused == MAP + 5 * MAP // 2 + weights
