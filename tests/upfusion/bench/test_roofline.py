"""Which GPU a driver's name speaks of, and the floor of a real graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from upfusion.bench.roofline import Roofline, gpu_in_table, roofline_of
from upfusion.export.cost import GPUS, cost_of, gpu_named, read_graph


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4080", None),
    ],
)
def test_names(name: str, found: str | None) -> None:
    gpu = gpu_in_table(name, GPUS)
    assert (gpu.name if gpu else None) == found


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    size = [1, 3, 64, 64]
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "g", infos[:1], infos[1:]))
    onnx.save(model, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def test_the_floor_is_the_cost_models(artifact: Any, graph: Path) -> None:
    import dataclasses

    opened = artifact("a", path=graph)
    fixed = dataclasses.replace(opened.contract.sizes, minimum=(64, 64), optimum=(64, 64), maximum=(64, 64))
    opened = dataclasses.replace(opened, contract=dataclasses.replace(opened.contract, sizes=fixed))
    roofline = roofline_of(opened, "NVIDIA H200", (64, 64), 0.5)
    assert isinstance(roofline, Roofline)
    assert roofline.floor_ms == cost_of(read_graph(graph), gpu_named("H200")).total.roofline_ms
    # Twelve thousand floats in and out at 4.8 TB/s.
    assert roofline.floor_ms == pytest.approx(2 * 4 * 3 * 64 * 64 / 4.8e12 * 1e3)
    assert roofline.measured_over_floor == 0.5 / roofline.floor_ms


def test_why_there_is_none(artifact: Any, graph: Path, tmp_path: Path) -> None:
    opened = artifact("a", path=graph)
    assert roofline_of(opened, None, (64, 64), 1.0) == "not on a GPU"
    assert "does not tell" in str(roofline_of(opened, "NVIDIA H200", (64, 64), None))
    assert "no figures for NVIDIA B300" in str(roofline_of(opened, "NVIDIA B300", (64, 64), 1.0))
    engine = artifact("a", path=tmp_path / "a.engine")
    assert roofline_of(engine, "NVIDIA H200", (64, 64), 1.0) == "only graphs are counted"
