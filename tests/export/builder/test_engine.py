"""Real builds of small graphs with TensorRT-RTX, which needs no GPU; and every way a build can end without one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from upfusion.export.builder import BuildOptions, choice, engine_from_onnx, process
from upfusion.export.builder.engine import request_from_contract
from upfusion.runtime.errors import (
    ArtifactError,
    BuildError,
    DeviceError,
    InputError,
    ManifestError,
    MissingDependencyError,
)
from upfusion.runtime.files import sha256_of
from upfusion.runtime.manifest import manifest_path, read_manifest

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

RTX = BuildOptions(builder="tensorrt-rtx", targets=("sm86",))
Exported = Callable[..., Path]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = [node for node in model.graph.node if node.name == name]
    return found


def test_streams_beside_the_main_one_are_asked_for(exported: Exported, tmp_path: Path) -> None:
    build = engine_from_onnx(exported(), tmp_path / "e.engine", dataclasses.replace(RTX, aux_streams=2)).build
    assert build is not None
    assert build.settings["aux_streams"] == 2


@pytest.mark.parametrize(("precision", "dynamic"), [("fp32", False), ("fp16", False), ("fp16", True)])
def test_builds_an_engine_with_its_manifest(exported: Exported, tmp_path: Path, precision: str, dynamic: bool) -> None:
    graph, engine = exported(precision, dynamic=dynamic), tmp_path / "small.engine"
    steps: list[tuple[str, float]] = []

    manifest = engine_from_onnx(graph, engine, RTX, lambda phase, done: steps.append((phase, done)))

    assert manifest == read_manifest(engine)
    assert manifest.kind == "engine"
    assert manifest.precision == precision
    assert manifest.parent is not None
    assert (manifest.parent.name, manifest.parent.sha256) == ("small.onnx", sha256_of(graph))
    assert not manifest.parity, "the graph's parity is not the engine's"
    build = manifest.build
    assert build is not None
    assert (build.builder, build.targets, build.gpu, build.executed_on_gpu) == ("tensorrt-rtx", ("sm86",), "", False)
    assert build.version == manifest.versions["tensorrt-rtx"]
    assert build.settings["strongly_typed"] is True
    assert build.settings["tf32"] is False
    assert build.settings["aux_streams"] == 0
    assert ("profile" in build.settings) is dynamic
    height, width = manifest.contract.sizes.maximum
    assert build.activation_memory_bytes > 16 * height * width, "at least one feature map of 16 channels"
    assert 0 < build.weights_bytes < engine.stat().st_size
    # Embedding, norm, pool, gathers and the last convolution pass over maps of 16 channels six times at the least.
    assert (build.bytes_moved == 0) if dynamic else (build.bytes_moved > 16 * height * width * 2 * 6)
    assert build.peak_memory_bytes > 50_000_000, "Python and the library alone take more"
    assert build.seconds > 0
    assert steps[-1][1] == 1.0
    assert [done for _, done in steps] == sorted(done for _, done in steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "small.engine",
        "small.engine.json",
        "small.onnx",
        "small.onnx.json",
    ]


CONFIGURED = """
import sys
from upfusion.export.builder.library import load
from upfusion.export.builder.messages import Request
library, request = load("tensorrt-rtx"), Request.from_line(sys.stdin.read())
from upfusion.export.builder.binding import trt
from upfusion.export.builder.configuration import configuration_for
from upfusion.export.builder.logger import BuildLogger
from upfusion.export.builder.network import network_from_onnx
logger = BuildLogger(print, verbose=False)
builder = trt.Builder(logger)
parsed = network_from_onnx(builder, request, logger)
config, _ = configuration_for(builder, parsed.network, request, library, None)
print(config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION), config.get_flag(trt.BuilderFlag.TF32))
"""


def test_engines_leave_every_allocation_to_the_runtime(exported: Exported, tmp_path: Path) -> None:
    """The runtime makes contexts without memory and captures their calls; an engine that allocates prevents both."""
    graph = exported("fp16", dynamic=True)
    manifest = read_manifest(graph)
    request = request_from_contract(manifest.contract, "fp16", graph, tmp_path / "x.engine", "tensorrt-rtx", RTX)
    command = [sys.executable, "-c", CONFIGURED]
    run = subprocess.run(command, input=request.to_line(), capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["True", "False"], run.stderr
    build = engine_from_onnx(graph, tmp_path / "x.engine", RTX).build
    assert build is not None
    assert build.settings["require_user_allocation"] is True


def test_the_plan_is_the_librarys_own(exported: Exported, tmp_path: Path) -> None:
    """Nothing is put before or behind the plan: it begins with the library's tag."""
    engine_from_onnx(exported(), tmp_path / "small.engine", RTX)
    assert (tmp_path / "small.engine").read_bytes()[:4] == b"vtrt"


def test_two_targets_in_one_engine_and_builds_are_repeatable(exported: Exported, tmp_path: Path) -> None:
    graph = exported("fp16")
    both = dataclasses.replace(RTX, targets=("sm86", "sm89"))
    first = engine_from_onnx(graph, tmp_path / "first.engine", both)
    second = engine_from_onnx(graph, tmp_path / "second.engine", both)
    assert first.build is not None
    assert first.build.targets == ("sm86", "sm89")
    assert first.sha256 == second.sha256
    assert first.sha256 != engine_from_onnx(graph, tmp_path / "one.engine", RTX).sha256


def test_no_target_means_every_gpu_since_ampere(exported: Exported, tmp_path: Path) -> None:
    manifest = engine_from_onnx(exported("fp16"), tmp_path / "small.engine", BuildOptions(builder="tensorrt-rtx"))
    assert manifest.build is not None
    assert manifest.build.targets == ("ampere+",)


def test_weights_outside_the_graph(exported: Exported, tmp_path: Path) -> None:
    graph = exported(external=True)
    assert (tmp_path / "small.onnx.data").is_file()
    inside = engine_from_onnx(exported(), tmp_path / "inside.engine", RTX)
    assert engine_from_onnx(graph, tmp_path / "outside.engine", RTX).sha256 == inside.sha256


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., Any]:
    """A function that expects a build to fail, and nothing but the given files to be there afterwards."""

    def build(graph: Path, kind: type[Exception], options: BuildOptions = RTX) -> str:
        engine = tmp_path / "small.engine"
        before = sorted(tmp_path.iterdir())
        with pytest.raises(kind) as caught:
            engine_from_onnx(graph, engine, options)
        assert type(caught.value) is kind
        assert sorted(tmp_path.iterdir()) == before
        return str(caught.value)

    return build


def test_an_engine_that_was_there_survives_a_failed_build(exported: Exported, tmp_path: Path) -> None:
    graph, engine = exported(), tmp_path / "small.engine"
    engine_from_onnx(graph, engine, RTX)
    before = read_manifest(engine)
    with pytest.raises(InputError):
        engine_from_onnx(graph, engine, dataclasses.replace(RTX, targets=("sm90",)))
    assert read_manifest(engine) == before


def test_a_target_that_the_library_does_not_know(exported: Exported, refused: Callable[..., str]) -> None:
    text = refused(exported(), InputError, dataclasses.replace(RTX, targets=("sm86", "sm90")))
    assert "does not build for sm90" in text
    assert "sm120" in text, "says which there are"
    assert "--builder tensorrt" in text


@pytest.mark.parametrize("option", [{"timing_cache": Path("cache")}, {"optimization_level": 5}])
def test_options_without_effect_are_refused(
    exported: Exported, refused: Callable[..., str], option: dict[str, Any]
) -> None:
    assert "has no effect with tensorrt-rtx" in refused(exported(), InputError, dataclasses.replace(RTX, **option))


def test_an_fp32_product_on_turing(exported: Exported, refused: Callable[..., str]) -> None:
    def add_product(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(
            helper.make_tensor("square", onnx.TensorProto.FLOAT, (16, 16), [0.1] * 256),
        )
        rank = node(model, "rank")
        rank.input[0] = "excited"
        model.graph.node.insert(
            list(model.graph.node).index(rank),
            helper.make_node("MatMul", ["score", "square"], ["excited"], name="excite"),
        )

    text = refused(exported(edit=add_product), BuildError, dataclasses.replace(RTX, targets=("sm75",)))
    assert "'excite'" in text
    assert "leave sm75 out" in text


def test_too_little_workspace(exported: Exported, refused: Callable[..., str]) -> None:
    text = refused(exported(), BuildError, dataclasses.replace(RTX, workspace_bytes=1000))
    assert "larger --workspace" in text
    assert "/_src/" not in text, "no source positions of the library"


def test_an_operator_that_the_library_cannot_import(exported: Exported, refused: Callable[..., str]) -> None:
    def replace_pool(model: onnx.ModelProto) -> None:
        node(model, "pool").op_type = "MaxUnpool"

    text = refused(exported(edit=replace_pool), BuildError)
    assert "node pool (MaxUnpool)" in text
    assert "update the library" in text


def test_types_that_do_not_meet(exported: Exported, refused: Callable[..., str]) -> None:
    def drop_cast(model: onnx.ModelProto) -> None:
        node(model, "embed").input[0] = "both"

    text = refused(exported("fp16", edit=drop_cast), BuildError)
    assert "node embed (Conv)" in text
    assert "must be of same type" in text
    assert "strongly typed" in text


def test_a_damaged_graph(exported: Exported, refused: Callable[..., str]) -> None:
    def dangle(model: onnx.ModelProto) -> None:
        node(model, "embed").input[0] = "nowhere"

    assert "node embed (Conv)" in refused(exported(edit=dangle), BuildError)


def test_a_graph_that_was_truncated_after_its_export(exported: Exported, refused: Callable[..., str]) -> None:
    graph = exported()
    graph.write_bytes(graph.read_bytes()[:-500])
    assert "is not the file its manifest describes" in refused(graph, ArtifactError)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not an ONNX graph"),
        (b"hello world" * 10, "is not an ONNX graph"),
        (None, "is not a complete ONNX file"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_no_graph_under_a_fitting_manifest(
    exported: Exported, refused: Callable[..., str], content: bytes | None, problem: str
) -> None:
    graph = exported()
    manifest = read_manifest(graph)
    graph.write_bytes(graph.read_bytes()[:-500] if content is None else content)
    manifest.write(graph)
    assert problem in refused(graph, ArtifactError)


def test_a_foreign_graph(exported: Exported, refused: Callable[..., str]) -> None:
    graph = exported()
    manifest_path(graph).unlink()
    text = refused(graph, ManifestError)
    assert "has no manifest" in text
    assert "upfusion export" in text


def test_a_manifest_of_another_graph(exported: Exported, refused: Callable[..., str]) -> None:
    graph = exported()
    manifest = read_manifest(graph)
    visible, infrared = manifest.contract.inputs
    for wrong in (
        dataclasses.replace(visible, name="colour"),
        dataclasses.replace(visible, dtype="uint8"),
        dataclasses.replace(visible, shape=(1, 3, 64, 48)),
    ):
        contract = dataclasses.replace(manifest.contract, inputs=(wrong, infrared))
        dataclasses.replace(manifest, contract=contract).write(graph)
        assert "its manifest" in refused(graph, ArtifactError)


@pytest.mark.parametrize("size", [None, 100])
def test_weights_that_are_missing_or_short(
    exported: Exported, refused: Callable[..., str], tmp_path: Path, size: int | None
) -> None:
    graph, data = exported(external=True), tmp_path / "small.onnx.data"
    if size is None:
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:size])
    text = refused(graph, ArtifactError)
    assert "small.onnx.data" in text
    assert ".data file together" in text


def test_an_engine_is_no_input(exported: Exported, tmp_path: Path) -> None:
    engine_from_onnx(exported(), tmp_path / "small.engine", RTX)
    with pytest.raises(ArtifactError, match="is an engine already"):
        engine_from_onnx(tmp_path / "small.engine", tmp_path / "again.engine", RTX)


def test_the_input_is_not_overwritten(exported: Exported) -> None:
    graph = exported()
    with pytest.raises(InputError, match="is the input"):
        engine_from_onnx(graph, graph, RTX)


def test_a_missing_folder(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="create the folder"):
        engine_from_onnx(exported(), tmp_path / "nowhere" / "small.engine", RTX)


def test_a_plan_without_its_manifest_is_not_left_behind(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = exported()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("upfusion.runtime.manifest.Manifest.to_json", fail)
    with pytest.raises(InputError, match="No space"):
        engine_from_onnx(graph, tmp_path / "small.engine", RTX)
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "small.onnx.json"}


def test_a_folder_in_the_manifests_place_leaves_the_engine_that_was_there(exported: Exported, tmp_path: Path) -> None:
    graph, engine = exported(), tmp_path / "small.engine"
    engine.write_bytes(b"an older plan")
    (tmp_path / "small.engine.json").mkdir()
    with pytest.raises(InputError, match=r"small\.engine\.json: it is a folder"):
        engine_from_onnx(graph, engine, RTX)
    assert engine.read_bytes() == b"an older plan"


def test_a_full_disk(exported: Exported, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's write fails for real: /dev/full takes nothing."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    build = process.build_in_worker

    def to_full_device(request: Any, *others: Any) -> Any:
        return build(dataclasses.replace(request, plan="/dev/full"), *others)

    monkeypatch.setattr("upfusion.export.builder.engine.build_in_worker", to_full_device)
    text = refused(exported(), BuildError)
    assert "No space left on device" in text


def test_cancelling_stops_the_worker_and_leaves_nothing(exported: Exported, tmp_path: Path) -> None:
    graph = exported()
    before = sorted(tmp_path.iterdir())

    def interrupt(phase: str, done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(graph, tmp_path / "small.engine", RTX, interrupt)
    assert sorted(tmp_path.iterdir()) == before


def test_a_worker_that_is_killed(
    exported: Exported, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_BOOT", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "was killed, most likely for want of memory" in refused(exported(), BuildError)


def test_a_worker_that_crashes(
    exported: Exported, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_BOOT", "raise SystemError('something native')")
    assert "something native" in refused(exported(), BuildError)


def test_a_library_that_is_not_installed(
    exported: Exported, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice.library, "MODULES", {"tensorrt": "no_such_module", "tensorrt-rtx": "neither_this"})
    text = refused(exported(), MissingDependencyError)
    assert 'pip install "upfusion[rtx]"' in text
    text = refused(exported(), MissingDependencyError, BuildOptions())
    assert "upfusion[rtx]" in text
    assert "upfusion[tensorrt]" in text


def test_tensorrt_needs_a_gpu(exported: Exported, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upfusion.export.builder.engine.installed_gpus", lambda: [])
    monkeypatch.setitem(choice.library.MODULES, "tensorrt", "tensorrt_rtx")
    text = refused(exported(), DeviceError, BuildOptions(builder="tensorrt"))
    assert "--builder tensorrt-rtx" in text


def test_verbose_passes_the_librarys_log_on(
    exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="upfusion.export.builder"):
        manifest = engine_from_onnx(exported(), tmp_path / "small.engine", dataclasses.replace(RTX, verbose=True))
    assert manifest.build is not None
    assert f"Total Activation Memory: {manifest.build.activation_memory_bytes} bytes" in caplog.text


def test_the_manifest_is_plain_json(exported: Exported, tmp_path: Path) -> None:
    engine_from_onnx(exported(), tmp_path / "small.engine", RTX)
    record = json.loads((tmp_path / "small.engine.json").read_text())
    assert record["build"]["executed_on_gpu"] is False
