"""What the doctor finds here, and what it says about machines that are not this one."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import typer
from typer.testing import CliRunner

from upfusion import doctor
from upfusion.cli.doctor import doctor as command
from upfusion.doctor import NEEDS, Need, Package, examine, requirements_by_extra, use_of


def package(name: str, *, fits: bool, extras: tuple[str, ...] = ()) -> Package:
    return Package(name=name, version="1.0" if fits else "", asked=">=1", fits=fits, extras=extras)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def test_examines_this_machine() -> None:
    report = examine()
    assert "CPUExecutionProvider" in report.providers
    numpy = next(package for package in report.packages if package.name == "numpy")
    assert (numpy.version, numpy.fits, numpy.extras) == (metadata.version("numpy"), True, ())
    assert [builder.name for builder in report.builders] == ["tensorrt", "tensorrt-rtx"]
    for builder in report.builders:
        assert bool(builder.obstacle) == bool(builder.remedy), "an obstacle comes with a remedy"
    assert len(report.uses) == len(NEEDS)


def test_json_for_scripts_and_a_list_for_people(app: typer.Typer) -> None:
    as_json = CliRunner().invoke(app, ["--json"])
    assert as_json.exit_code == 0
    assert {"gpus", "providers", "builders", "packages", "uses"} <= json.loads(as_json.stdout).keys()
    as_text = CliRunner().invoke(app, [])
    assert as_text.exit_code == 0
    assert "ONNX Runtime" in as_text.stdout
    assert "doctor" in as_text.stdout


def test_every_verb_of_the_command_line_is_in_the_list() -> None:
    app = pytest.importorskip("upfusion.cli.app", reason="a verb's module cannot be imported", exc_type=ImportError)
    assert {need.verb for need in NEEDS} == app.VERBS.keys() | app.GROUPS.keys()


def test_extras_exist_and_are_resolved() -> None:
    extras = requirements_by_extra()
    assert {extra for need in NEEDS for extra in need.extras} <= extras.keys()
    assert "torch" in {requirement.name for requirement in extras["train"]}, "through upfusion[export]"
    assert "numpy" in {requirement.name for requirement in extras[""]}
    assert "torch" not in {requirement.name for requirement in extras[""]}


def test_a_missing_extra_is_named_with_its_command() -> None:
    need = Need(verb="train", purpose="", extras=("train",))
    packages = [
        package("numpy", fits=True),
        package("torch", fits=False, extras=("export", "train")),
        package("open_clip_torch", fits=False, extras=("text",)),
    ]
    use = use_of(need, packages, has_gpu=False, has_clip=False)
    assert use.missing == ("torch>=1",)
    assert use.remedy == 'pip install "upfusion[train]"'


def test_a_broken_base_install_comes_first() -> None:
    use = use_of(Need(verb="bench", purpose=""), [package("numpy", fits=False)], has_gpu=True, has_clip=True)
    assert use.missing == ("numpy>=1",)
    assert use.remedy == 'pip install --upgrade "upfusion"'


def test_a_gpu_and_weights_can_be_missing_too() -> None:
    need = Need(verb="text", purpose="", gpu=True, clip=True)
    use = use_of(need, [], has_gpu=False, has_clip=False)
    assert use.missing == ("an NVIDIA GPU", "CLIP's weights")
    assert not use_of(need, [], has_gpu=True, has_clip=True).missing


def test_a_substitute_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "1.31.1"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert doctor._installed_version("onnxruntime") == "1.31.1"
    assert doctor._installed_version("numpy") == ""


def test_a_library_that_does_not_load_is_no_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_installed", lambda name: True)

    def fail(name: str) -> None:
        raise doctor.UPFusionError("libnvinfer.so.11: cannot open shared object file", "install again")

    monkeypatch.setattr(doctor, "describe", fail)
    found = doctor._builder("tensorrt", ())
    assert (found.version, found.remedy) == ("", "install again")
    assert "libnvinfer" in found.obstacle
