"""A graph of two nodes, for the verbs that open one."""

from __future__ import annotations

from pathlib import Path

import pytest

from upfusion.runtime.manifest import METADATA_KEY, Contract, Manifest, SizeRange, Source, TensorSpec, TextRecord


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """fused = infrared, any batch, any size."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    def spec(name: str, channels: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("batch", channels, "height", "width"), meaning="RGB")

    contract = Contract(
        io="tensor",
        inputs=(spec("visible", 3), spec("infrared", 1)),
        outputs=(spec("fused", 1),),
        batch=1,
        sizes=SizeRange(minimum=(8, 8), optimum=(48, 64), maximum=(512, 512)),
    )
    manifest = Manifest(
        kind="onnx",
        source=Source(name="x.safetensors", sha256="0" * 64, preset="tiny", config={}),
        text=TextRecord(prompt="p", encoder="none", permutations={}, smallest_gaps={}),
        precision="fp32",
        contract=contract,
        opset=17,
        versions={},
        parity={},
    )
    infos = {
        one.name: helper.make_tensor_value_info(one.name, onnx.TensorProto.FLOAT, list(one.shape))
        for one in (*contract.inputs, *contract.outputs)
    }
    # The visible image takes part, so that ONNX Runtime keeps it as an input.
    nodes = [
        helper.make_node("ReduceMean", ["visible"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Max", ["mean", "infrared"], ["fused"]),
    ]
    body = helper.make_graph(nodes, "g", [infos["visible"], infos["infrared"]], [infos["fused"]])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    manifest.write(path)
    return path
