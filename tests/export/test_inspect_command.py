"""``upfusion inspect`` on exported graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from upfusion.cli.app import app
from upfusion.export.cost import GPUS
from upfusion.export.onnx_export import ExportOptions
from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.manifest import SizeRange

SIZE = SizeRange(minimum=(37, 51), optimum=(37, 51), maximum=(37, 51))
FIGURES = ("flops", "bytes_unfused", "bytes_fused", "weight_bytes", "nodes", "kernels", "roofline_ms")


def inspect(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def graphs(exported: Callable[[ExportOptions], Path]) -> tuple[Path, Path]:
    """Our form and the plain one of the small network, as images in and out."""
    return exported(ExportOptions(sizes=SIZE, io="image")), exported(ExportOptions(sizes=SIZE, io="image", rewrites=()))


def test_a_script_reads_every_figure(graphs: tuple[Path, Path]):
    ours, plain = (json.loads(inspect(*graphs, "--gpu", "H200", "--json"))[str(path)] for path in graphs)
    assert ours["size"] == [37, 51]
    assert ours["gpu"] == "H200"
    for cost, path in ((ours, graphs[0]), (plain, graphs[1])):
        nodes = onnx.load(path).graph.node
        assert cost["total"]["nodes"] == len(nodes) == sum(cost["node_kinds"].values())
        for figure in FIGURES:
            assert cost["total"][figure] > 0
            # Blocks share a constant at most, so their sum is the whole, or hardly more.
            total = sum(block[figure] for block in cost["blocks"].values())
            assert cost["total"][figure] <= total * 1.000001 <= cost["total"][figure] * 1.05, figure
    assert "fold_prompt" in ours["rewrites"]
    assert plain["rewrites"] == []
    assert ours["total"]["nodes"] < plain["total"]["nodes"]
    # An image so small is nearly all weights, and padding makes ours a little larger: what the maps cost tells.
    for figure in ("bytes_unfused", "bytes_fused"):
        maps = [cost["total"][figure] - cost["total"]["weight_bytes"] for cost in (ours, plain)]
        assert maps[0] < maps[1]
    assert ours["peak_bytes"] <= plain["peak_bytes"]


def test_people_read_tables_side_by_side(graphs: tuple[Path, Path]):
    text = inspect(*graphs, "--gpu", "all")
    for words in (
        "encoders level 1", "perturbation level 4", "refinement", "peak of live activations", "nodes: ",
        "side by side", "MB with fusion", *(gpu.name for gpu in GPUS),
    ):  # fmt: skip
        assert words in text
    assert "…" not in text


def test_what_cannot_be_counted(graphs: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(InputError, match="no figures for a GPU called 'Voodoo'") as caught:
        inspect(graphs[0], "--gpu", "Voodoo")
    assert "RTX 4090" in caught.value.hint
    (tmp_path / "x.onnx").write_text("no graph")
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        inspect(tmp_path / "x.onnx")
