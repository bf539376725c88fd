"""Small graphs with the operators that matter to a builder, written as the exporter writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from upfusion.runtime.manifest import Contract, Manifest, SizeRange, Source, TensorSpec, TextRecord

CHANNELS = 16


def graph(precision: str, *, dynamic: bool = False, size: tuple[int, int] = (32, 48)) -> onnx.ModelProto:
    """Convolution, layer norm over channels, ranking by top-k of a pooled vector, two gathers, convolution."""
    kind, number = (TensorProto.FLOAT16, np.float16) if precision == "fp16" else (TensorProto.FLOAT, np.float32)
    sides = ("height", "width") if dynamic else size
    generator = np.random.default_rng(0)

    def plane(name: str, channels: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, *sides))

    def constant(name: str, value: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value), name)

    nodes = [
        helper.make_node("Concat", ["visible", "infrared"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], ["images"], to=kind),
        helper.make_node("Conv", ["images", "w_in"], ["features"], pads=[1] * 4, name="embed"),
        helper.make_node("Transpose", ["features"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("LayerNormalization", ["last", "scale", "bias"], ["normed"], axis=-1, name="norm"),
        helper.make_node("Transpose", ["normed"], ["maps"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["vector"]),
        helper.make_node("Cast", ["vector"], ["score"], to=TensorProto.FLOAT),
        helper.make_node("TopK", ["score", "k"], ["values", "indices"], axis=1, name="rank"),
        helper.make_node("Squeeze", ["indices", "zero"], ["order"]),
        helper.make_node("Gather", ["maps", "permutation"], ["shuffled"], axis=1, name="permute"),
        helper.make_node("Gather", ["shuffled", "order"], ["selected"], axis=1, name="select"),
        helper.make_node("Conv", ["selected", "w_out"], ["result"], pads=[1] * 4, name="project"),
        helper.make_node("Cast", ["result"], ["fused"], to=TensorProto.FLOAT),
    ]
    constants = [
        constant("w_in", (generator.standard_normal((CHANNELS, 4, 3, 3)) * 0.2).astype(number)),
        constant("w_out", (generator.standard_normal((1, CHANNELS, 3, 3)) * 0.02).astype(number)),
        constant("scale", np.ones(CHANNELS, number)),
        constant("bias", np.zeros(CHANNELS, number)),
        constant("k", np.array([CHANNELS], np.int64)),
        constant("zero", np.array([0], np.int64)),
        constant("permutation", np.arange(CHANNELS, dtype=np.int64)[::-1].copy()),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "small", [plane("visible", 3), plane("infrared", 1)], [plane("fused", 1)], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model


def manifest_of(precision: str, *, dynamic: bool = False, size: tuple[int, int] = (32, 48)) -> Manifest:
    """The manifest that the exporter would write for :func:`graph`."""
    sides: tuple[int | str, ...] = ("height", "width") if dynamic else size

    def plane(name: str, channels: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=(1, channels, *sides), meaning="NCHW, 0..1")

    sizes = (
        SizeRange(minimum=(16, 16), optimum=size, maximum=(64, 96))
        if dynamic
        else SizeRange(minimum=size, optimum=size, maximum=size)
    )
    return Manifest(
        kind="onnx",
        source=Source(name="small.safetensors", sha256="0" * 64, preset="tiny", config={}),
        text=TextRecord(prompt="night", encoder="stand-in", permutations={}, smallest_gaps={}),
        precision="fp16" if precision == "fp16" else "fp32",
        contract=Contract(
            io="tensor",
            inputs=(plane("visible", 3), plane("infrared", 1)),
            outputs=(plane("fused", 1),),
            batch=1,
            sizes=sizes,
        ),
        opset=18,
        versions={"onnx": onnx.__version__},
        parity={"max_difference": 1e-6},
    )


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a graph, changed by ``edit``, with its manifest, and returns its path."""

    def write(
        precision: str = "fp32",
        *,
        dynamic: bool = False,
        edit: Callable[[onnx.ModelProto], None] | None = None,
        external: bool = False,
    ) -> Path:
        model = graph(precision, dynamic=dynamic)
        if edit:
            edit(model)
        path = tmp_path / "small.onnx"
        if external:
            onnx.save(model, path, save_as_external_data=True, location="small.onnx.data", size_threshold=0)
        else:
            onnx.save(model, path)
        manifest_of(precision, dynamic=dynamic).write(path)
        return path

    return write
