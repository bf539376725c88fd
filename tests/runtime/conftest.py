"""Tiny ONNX artifacts with a real manifest: fused = mean of luma and infrared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions
from upfusion.runtime.manifest import (
    METADATA_KEY,
    Contract,
    Manifest,
    SizeRange,
    Source,
    TensorSpec,
    TextRecord,
)

ANY = SizeRange(minimum=(8, 8), optimum=(32, 48), maximum=(512, 512))


def one_size(height: int, width: int) -> SizeRange:
    return SizeRange(minimum=(height, width), optimum=(height, width), maximum=(height, width))


def tensor_contract(sizes: SizeRange = ANY, batch: int = 1, *, open_batch: bool = False) -> Contract:
    height, width = sizes.optimum if sizes.fixed else ("height", "width")
    count = "batch" if open_batch else batch
    return Contract(
        io="tensor",
        inputs=(
            TensorSpec(name="visible", dtype="float32", shape=(count, 3, height, width), meaning="RGB 0..1"),
            TensorSpec(name="infrared", dtype="float32", shape=(count, 1, height, width), meaning="0..1"),
        ),
        outputs=(TensorSpec(name="fused", dtype="float32", shape=(count, 1, height, width), meaning="not clamped"),),
        batch=batch,
        sizes=sizes,
    )


def image_contract(color: str, sizes: SizeRange = ANY) -> Contract:
    size = ("batch", "height", "width")
    return Contract(
        io="image",
        inputs=(
            TensorSpec(name="visible", dtype="uint8", shape=(*size, 3), meaning="RGB 0..255"),
            TensorSpec(name="infrared", dtype="uint8", shape=size, meaning="0..255"),
        ),
        outputs=(
            TensorSpec(name="fused", dtype="uint8", shape=(*size, 3) if color == "ycbcr" else size, meaning="0..255"),
        ),
        batch=1,
        sizes=sizes,
        size_multiple=1,
    )


def manifest_for(contract: Contract, **changes: Any) -> Manifest:
    manifest = Manifest(
        kind="onnx",
        source=Source(name="tiny.safetensors", sha256="0" * 64, preset="tiny", config={}),
        text=TextRecord(prompt="a prompt", encoder="none", permutations={}, smallest_gaps={}),
        precision="fp32",
        contract=contract,
        opset=17,
        versions={},
        parity={},
    )
    return dataclasses.replace(manifest, **changes)


def _tensor_nodes() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    weights = np.array([0.299, 0.587, 0.114], np.float32).reshape(1, 3, 1, 1) / 2
    constants = [
        helper.make_tensor("weights", TensorProto.FLOAT, [1, 3, 1, 1], weights.ravel()),
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
    ]
    nodes = [
        helper.make_node("Conv", ["visible", "weights"], ["luma"]),
        helper.make_node("Mul", ["infrared", "half"], ["half_infrared"]),
        helper.make_node("Add", ["luma", "half_infrared"], ["fused"]),
    ]
    return nodes, constants


def _image_nodes(color: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """fused = infrared; in colour: every channel is the infrared image."""
    constants = [
        helper.make_tensor("last", TensorProto.INT64, [1], [3]),
        helper.make_tensor("three", TensorProto.INT64, [4], [1, 1, 1, 3]),
    ]
    if color == "gray":
        return [helper.make_node("Identity", ["infrared"], ["fused"])], []
    nodes = [
        helper.make_node("Unsqueeze", ["infrared", "last"], ["one"]),
        helper.make_node("Tile", ["one", "three"], ["fused"]),
    ]
    return nodes, constants


def write_onnx(
    path: Path,
    contract: Contract,
    *,
    extra_output: bool = False,
    metadata: bool = True,
    sidecar: bool = True,
    nodes: tuple[list[onnx.NodeProto], list[onnx.TensorProto]] | None = None,
    **changes: Any,
) -> Path:
    """Write an artifact that fulfils the contract."""
    if nodes is None:
        color = "ycbcr" if len(contract.outputs[0].shape) == 4 else "gray"
        nodes = _tensor_nodes() if contract.io == "tensor" else _image_nodes(color)
    operations, constants = nodes
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), list(spec.shape)
            )
            for spec in specs
        ]
        for specs in (contract.inputs, contract.outputs)
    )
    if extra_output:  # a size that depends on the data: only ONNX Runtime knows it
        operations = [*operations, helper.make_node("NonZero", ["infrared"], ["scpm.order"])]
        outputs.append(helper.make_tensor_value_info("scpm.order", TensorProto.INT64, [4, "count"]))
    graph = helper.make_graph(operations, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    manifest = manifest_for(contract, **changes)
    if metadata:
        model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    onnx.save(model, path)
    if sidecar:
        manifest.write(path)
    return path


@pytest.fixture
def make() -> Any:
    """The makers of this file: ``make.onnx(path, contract)``, ``make.tensor_contract()``, ..."""

    class Makers:
        onnx = staticmethod(write_onnx)
        tensor_contract = staticmethod(tensor_contract)
        image_contract = staticmethod(image_contract)
        manifest = staticmethod(manifest_for)
        one_size = staticmethod(one_size)
        any_size = ANY
        options = OnnxRuntimeOptions(threads=1, spin=False)
        """On the CPU, without threads that compete with other tests."""

    return Makers


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Random images: ``noise((height, width, 3), dtype, seed)``."""

    def make_noise(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)

    return make_noise
