"""Two graphs of one network block by block."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from upfusion.cli.app import app
from upfusion.export.layers import compare_layers, first_parting, mark_blocks
from upfusion.export.onnx_export import ExportOptions
from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import Manifest, SizeRange, read_manifest
from upfusion.runtime.pairs import Pair

pytest.importorskip("polygraphy", reason="the layers are run by Polygraphy")

SIZE = (64, 64)
FIXED = SizeRange(minimum=SIZE, optimum=SIZE, maximum=SIZE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    rows, columns = np.mgrid[0:64, 0:64]
    paths = folder / "first.png", folder / "second.png"
    for path, pace in zip(paths, (0.11, 0.23), strict=True):
        write_image(path, (127 + 120 * np.sin(pace * rows + 0.3 * pace * columns)).astype(np.uint8))
    return Pair(name="drawn", first=paths[0], second=paths[1])


@pytest.fixture(scope="module")
def graphs(exported: Callable[[ExportOptions], Path]) -> tuple[Path, Path]:
    return exported(ExportOptions(sizes=FIXED)), exported(ExportOptions(sizes=FIXED, rewrites=()))


def damaged(path: Path, folder: Path, block: str) -> Path:
    """Write a copy of a graph in which the first convolution inside a block is off by a tenth; return its path."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "Conv" and block in str(node.metadata_props))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    made = folder / "damaged.onnx"
    onnx.save(model, made)
    Manifest.from_json(read_manifest(path).to_json(), where="x").write(made)
    return made


def test_graphs_in_every_form_have_the_same_blocks(
    exported: Callable[[ExportOptions], Path], graphs: tuple[Path, Path], pair: Pair
):
    rewritten, plain = graphs
    blocks = compare_layers(rewritten, plain, pair)
    names = [block.name for block in blocks]
    assert names[0] == "encoders.0.0"
    assert names[-1] == "fused"
    assert {f"perturbations.{level}" for level in range(4)} < set(names)
    named = exported(ExportOptions(sizes=FIXED, io="image"))
    bytewise = compare_layers(named, rewritten, pair)
    assert [block.name for block in bytewise] == names[:-1]
    assert first_parting(bytewise) is None  # the same rewrites, and edges that agree to the bit
    parting = first_parting(blocks)
    # Random weights rank near ties, so the two may part where channels are ranked, and nowhere else.
    assert parting is None or (parting.name.startswith("perturbations") and parting.moved)


def test_the_block_that_was_damaged_is_marked(graphs: tuple[Path, Path], pair: Pair, tmp_path: Path):
    wrong = damaged(graphs[1], tmp_path, "encoders_visible.2.0")
    blocks = compare_layers(wrong, graphs[1], pair)
    parting = first_parting(blocks)
    assert parting is not None
    assert parting.name == "encoders.2.0"
    assert all(block.max_difference == 0 for block in blocks[: blocks.index(parting)])

    data = [str(pair.first), str(pair.second)]
    result = CliRunner().invoke(app, ["verify", str(wrong), str(graphs[1]), "--data", *data, "--layers", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["first_parting"] == "encoders.2.0"
    assert "part at encoders.2.0" in result.stderr
    result = CliRunner().invoke(app, ["verify", str(graphs[1]), str(graphs[1]), "--data", *data, "--layers"])
    assert result.exit_code == 0
    assert "blocks agree" in result.stderr


def test_what_cannot_be_compared_is_said(graphs: tuple[Path, Path], pair: Pair, tmp_path: Path):
    with pytest.raises(ArtifactError, match="no ONNX file"):
        compare_layers(tmp_path / "fusion.engine", graphs[0], pair)
    large = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in large:
        write_image(path, np.zeros((80, 64), np.uint8))
    with pytest.raises(InputError, match="80x64"):
        compare_layers(*graphs, Pair(name="tall", first=large[0], second=large[1]))
    bare = onnx.load(graphs[0])
    for node in bare.graph.node:
        del node.metadata_props[:]
    with pytest.raises(ArtifactError, match="notes no modules"):
        mark_blocks(bare)
