"""A graph that takes decisions: the dynamic graph from each decision on, alone, in a video, built and judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner, Result

from upfusion.checkpoint import Checkpoint
from upfusion.cli.app import app
from upfusion.export import onnx_export
from upfusion.export.deploy import fix_text
from upfusion.export.onnx_export import ExportOptions, export_onnx
from upfusion.export.reference import why_not
from upfusion.model.decisions import imposing
from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions
from upfusion.runtime.errors import ArtifactError, ExportError, InputError, UPFusionError
from upfusion.runtime.fuser import load
from upfusion.runtime.held_ranking import load_held_ranking
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import SizeRange, read_manifest
from upfusion.samples import night_street
from upfusion.text import stand_in_text

Export = Callable[[ExportOptions], Path]

# Sizes of test_onnx_export.py, whose graphs are there already.
SIZE = (60, 90)
FIXED = SizeRange(minimum=SIZE, optimum=SIZE, maximum=SIZE)
RANGE = SizeRange(minimum=(32, 48), optimum=(64, 96), maximum=(128, 128))
QUIET = OnnxRuntimeOptions(threads=1, spin=False)


def both(exported: Export, **options: Any) -> tuple[Path, Path]:
    """The graph that ranks and the one that takes its decisions."""
    options = {"sizes": FIXED, "io": "image"} | options
    return exported(ExportOptions(**options, expose_ranks=True)), exported(ExportOptions(**options, ranking="given"))


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    opened = session(path)
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feed), strict=True))


def frames(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Streets that differ so much that their channels rank differently."""
    return [night_street(*SIZE, seed=seed) for seed in range(count)]


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        # The same nodes in the same order on the same numbers: equal, unless ONNX Runtime merges others where less
        # stands around them, which reorders sums.
        ({"io": "tensor"}, 1e-6),
        ({"io": "image"}, 0),
        # Half maps are computed in float32 and rounded where casts remain; a sum that falls on the other side of a
        # rounding border moves by 2^-11 of its value.
        ({"io": "tensor", "sizes": RANGE, "batch": 2, "precision": "fp16"}, 1e-3),
    ],
    ids=["tensor", "image", "half, dynamic size, batch of 2"],
)
def test_given_its_own_decisions_the_image_is_the_dynamic_graphs(
    exported: Export, options: dict[str, Any], limit: float
) -> None:
    ranks, given = both(exported, **options)
    contract = read_manifest(given).contract
    random = np.random.default_rng(5)
    feed: dict[str, np.ndarray] = {}
    for spec in contract.inputs:
        shape = [{"height": 48, "width": 64}.get(str(side), side) for side in spec.shape]
        values = random.random(shape, np.float32)
        feed[spec.name] = values if spec.dtype == "float32" else (values * 255).astype(np.uint8)
    wanted = run(ranks, feed)
    decisions = {spec.name: wanted[spec.name] for spec in contract.decision_inputs}
    assert {name: (str(value.dtype), value.shape) for name, value in decisions.items()} == {
        spec.name: (spec.dtype, spec.shape) for spec in contract.decision_inputs
    }
    got = run(given, feed | decisions)
    assert got.keys() == {spec.name for spec in contract.outputs}
    for name, image in got.items():
        difference = np.abs(image.astype(np.float64) - wanted[name]).max()
        assert difference <= limit, name


def test_other_decisions_are_followed(exported: Export, small_checkpoint: Checkpoint) -> None:
    """The picture of one frame with the decisions of another is the network's with these imposed."""
    _, given = both(exported, io="tensor")
    random = np.random.default_rng(6)
    inputs = [
        {name: random.random((1, channels, 64, 96), np.float32) for name, channels in (("visible", 3), ("infrared", 1))}
        for _ in range(2)
    ]
    reference, _ = fix_text(small_checkpoint.model, stand_in_text())
    with torch.no_grad():
        _, decisions = reference.with_decisions(*map(torch.from_numpy, inputs[1].values()))
        own, first = reference.with_decisions(*map(torch.from_numpy, inputs[0].values()))
        with imposing(reference.network, decisions):
            imposed = reference(*map(torch.from_numpy, inputs[0].values())).numpy()
    assert any((first[name] != decisions[name]).any() for name in decisions)
    got = run(given, inputs[0] | {name: value.numpy() for name, value in decisions.items()})["fused"]
    # float32 on outputs of order 1, as for every FP32 export.
    assert np.abs(got - imposed).max() < 1e-5 < np.abs(imposed - own.numpy()).max()


def test_what_ranks_is_gone(exported: Export) -> None:
    ranks, given = (onnx.load(path) for path in both(exported))
    assert sum(node.op_type == "TopK" for node in ranks.graph.node) >= 9
    assert not [node.name for node in given.graph.node if node.op_type in ("TopK", "If")]
    assert len(given.graph.node) < len(ranks.graph.node)

    def trunk(model: onnx.ModelProto) -> int:
        noted = [entry.value for node in model.graph.node for entry in node.metadata_props]
        return sum(".trunk" in scopes or ".squeeze" in scopes for scopes in noted)

    def weights(model: onnx.ModelProto) -> int:
        return sum(int(np.prod(value.dims)) for value in model.graph.initializer)

    assert trunk(ranks) > 0 == trunk(given)
    assert weights(given) < weights(ranks)


def test_the_manifest_says_what_it_takes(exported: Export) -> None:
    ranks, given = (read_manifest(path) for path in both(exported))
    assert (ranks.ranking, given.ranking) == ("dynamic", "given")
    assert ranks.contract.decision_outputs == given.contract.decision_inputs
    assert [spec.name for spec in given.contract.decision_inputs][:3] == ["scpm.order", "tcpm1.order", "tcpm1.keep"]
    assert not ranks.contract.decision_inputs
    assert not given.contract.decision_outputs
    assert "decisions_moved" not in given.parity  # it was fed the network's


def test_the_export_compares_it_too(
    small_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fed wrong decisions, it is not the network, and there is no file."""
    real = onnx_export.take_decisions

    def crossed(model: Any, names: Any) -> None:
        real(model, names)
        orders = [value for value in model.graph.inputs if value.name in ("tcpm1.order", "tcpm2.order")]
        keeps = [value for value in model.graph.inputs if value.name.endswith(".keep")]
        assert len(orders) == 2
        for value in keeps:  # the graph ignores what it is told about the masks
            node = value.uses()[0].node
            node.replace_input_with(list(node.inputs).index(value), constant_of(model, value))

    def constant_of(model: Any, value: Any) -> Any:
        import onnx_ir as ir

        name = f"{value.name}.nothing"
        mask = np.ones(tuple(value.shape.numpy()), np.bool_)
        mask[..., 1:] = False
        made = ir.Value(name=name, const_value=ir.tensor(mask, name=name), shape=value.shape, type=value.type)
        model.graph.register_initializer(made)
        return made

    monkeypatch.setattr(onnx_export, "take_decisions", crossed)
    with pytest.raises(ExportError, match="not the network"):
        export_onnx(small_checkpoint, tmp_path / "given.onnx", None, ExportOptions(sizes=FIXED, ranking="given"))
    assert not list(tmp_path.iterdir())


def test_options_that_make_no_graph(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with --ranking given it decides nothing"):
        ExportOptions(ranking="given", expose_ranks=True)
    with pytest.raises(InputError, match="changes nothing in an FP32 graph with given ranking"):
        ExportOptions(ranking="given", calibration=tmp_path / "calibration.json")


def test_a_stream_with_held_rankings_is_each_frame_with_the_decisions_imposed(exported: Export) -> None:
    ranks, given = both(exported)
    shown = frames(7)
    with load_held_ranking(ranks, given, 3, options=QUIET) as held:
        fused = [outcome.result() for outcome in held.stream(shown)]
    ranker, taker = session(ranks), session(given)
    names = [spec.name for spec in read_manifest(given).contract.decision_inputs]
    decisions: dict[str, np.ndarray] = {}
    moved = 0
    for number, (visible, infrared) in enumerate(shown):
        feed = {"visible": visible[None], "infrared": infrared[None]}
        own = dict(zip(names, ranker.run(names, feed), strict=True))
        if number % 3 == 0:
            decisions = own
        moved += sum(int((own[name] != decisions[name]).sum()) for name in names)
        wanted = taker.run(["fused"], feed | decisions)[0][0]
        np.testing.assert_array_equal(fused[number], wanted)  # the same graph on the same bytes
    assert moved > 0, "every frame ranks alike, so this shows nothing"


def test_ranking_every_frame_is_no_holding(exported: Export) -> None:
    ranks, given = both(exported)
    with load_held_ranking(ranks, given, 1, options=QUIET) as held, load(ranks, options=QUIET) as alone:
        pictures = [[outcome.result() for outcome in one.stream(frames(3))] for one in (held, alone)]
    for one, other in zip(*pictures, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def upfusion(tmp_path: Path) -> Callable[..., Result]:
    """Run a command in a folder with two videos and a pair."""
    for folder, place in (("vis", 0), ("ir", 1)):
        writer = cv2.VideoWriter(str(tmp_path / f"{folder}.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, SIZE[::-1])
        for pair in frames(4):
            image = pair[place]
            writer.write(image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
        writer.release()
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "a.png", frames(1)[0][place])

    def command(*arguments: object) -> Result:
        words = [str(tmp_path / word) if word in ("vis", "ir", "vis.avi", "ir.avi", "out") else word
                 for word in map(str, arguments)]  # fmt: skip
        return CliRunner().invoke(app, words)

    return command


def test_the_command(exported: Export, upfusion: Any, tmp_path: Path) -> None:
    ranks, given = both(exported)
    video = tmp_path / "fused.mp4"
    result = upfusion("fuse", "vis.avi", "ir.avi", "-m", ranks, "--every", 3, "--between", given, "-o", video, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ranked_every"] == 3
    assert "one in 3 ranked" in " ".join(result.stderr.split())
    record = json.loads((tmp_path / "fused.mp4.json").read_text())
    assert (record["frames"], record["ranked_every"]) == (4, 3)
    assert record["sha256"] == read_manifest(ranks).sha256
    assert record["between"]["sha256"] == read_manifest(given).sha256


def test_two_that_do_not_go_together(exported: Export) -> None:
    ranks, given = both(exported)
    mute = exported(ExportOptions(sizes=FIXED))
    planes = exported(ExportOptions(sizes=FIXED, ranking="given"))
    for ranker, between, problem in (
        (mute, given, r"ranks \(dynamic\) and does not show any"),
        (ranks, mute, "takes no decisions: its ranking is dynamic"),
        (ranks, planes, "does not go with .*: --io is tensor here, image there"),
    ):
        with pytest.raises(ArtifactError, match=problem) as caught:
            load_held_ranking(ranker, between, 3, options=QUIET)
        assert str(between) in caught.value.problem
        assert "export" in caught.value.hint


def test_alone_it_sends_the_user_to_the_pair(exported: Export, upfusion: Any, small_checkpoint: Checkpoint) -> None:
    _, given = both(exported)
    data = ("--data", "vis", "ir")
    for arguments in (
        ("fuse", "vis", "ir", "-m", given, "-o", "out"),
        ("verify", given, small_checkpoint.path, *data),
        ("verify", given, given, *data, "--layers"),
        ("bench", given),
    ):
        result = upfusion(*arguments)
        assert isinstance(result.exception, UPFusionError), arguments
        assert "was exported with --ranking given" in result.exception.problem
        assert "--between" in result.exception.hint
        assert "upfusion accept" in result.exception.hint
    assert upfusion("inspect", given).exit_code == 0


def test_the_gate_hands_it_the_references_decisions(
    exported: Export, upfusion: Any, small_checkpoint: Checkpoint
) -> None:
    ranks, given = both(exported)
    manifest = read_manifest(given)
    assert why_not(given, manifest) == "it takes decisions and makes none"
    assert why_not(exported(ExportOptions(sizes=FIXED)), manifest) == (
        "it does not show the decisions to compute with (--expose-ranks)"
    )
    for reference in (ranks, small_checkpoint.path):
        result = upfusion("accept", given, "--data", "vis", "ir", "--reference", reference)
        assert result.exit_code == 0, result.output
    assert read_manifest(given).acceptance["verdict"] == "accepted"


def test_it_builds_an_engine(exported: Export, upfusion: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _, given = both(exported)
    engine = tmp_path / "given.engine"
    result = upfusion("build", given, "-o", engine, "--builder", "tensorrt-rtx", "--target", "sm89")
    assert result.exit_code == 0, result.output
    assert "--reference CHECKPOINT" in " ".join(result.stderr.split())
    assert "WARNING" not in result.stderr
    manifest = read_manifest(engine)
    assert manifest.ranking == "given"
    assert manifest.contract.decision_inputs
