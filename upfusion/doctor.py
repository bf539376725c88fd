"""What is installed here, what each verb can do with it, and how to get the rest."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from upfusion import __version__
from upfusion.export.builder import BUILDERS, BuildOptions, choose_builder, installed_gpus
from upfusion.export.builder.gpus import Gpu
from upfusion.export.builder.library import INSTALL, is_installed
from upfusion.export.builder.options import BuilderName
from upfusion.export.builder.process import describe
from upfusion.runtime.errors import UPFusionError

DISTRIBUTION = "upfusion"

SUBSTITUTES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "tensorrt-cu13": ("tensorrt", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
}
"""Distributions that do as well as the one that an extra names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one use of a verb needs beyond a bare install."""

    verb: str
    purpose: str
    extras: tuple[str, ...] = ()
    gpu: bool = False
    clip: bool = False


NEEDS = (
    Need(verb="demo", purpose="export, verify and fuse the samples", extras=("export", "metrics")),
    Need(verb="doctor", purpose="this list"),
    Need(verb="fuse", purpose="with an ONNX file"),
    Need(verb="fuse", purpose="with a checkpoint", extras=("export",)),
    Need(verb="fuse", purpose="with a TensorRT-RTX engine", extras=("rtx",), gpu=True),
    Need(verb="fuse", purpose="with a TensorRT engine", extras=("tensorrt",), gpu=True),
    Need(verb="text", purpose="encode a prompt", extras=("text",), clip=True),
    Need(verb="convert", purpose="the authors' checkpoint to ours", extras=("export",)),
    Need(verb="export", purpose="a checkpoint to ONNX", extras=("export",)),
    Need(verb="build", purpose="with tensorrt-rtx", extras=("rtx",)),
    Need(verb="build", purpose="with tensorrt", extras=("tensorrt",), gpu=True),
    Need(verb="verify", purpose="compare two artifacts", extras=("metrics",)),
    Need(verb="accept", purpose="compare with the reference", extras=("metrics",)),
    Need(verb="bench", purpose="measure an ONNX file"),
    Need(verb="bench", purpose="with plot, energy and roofline", extras=("bench",)),
    Need(verb="calibrate", purpose="record ranges and margins", extras=("export",)),
    Need(verb="inspect", purpose="what an ONNX file costs", extras=("export",)),
    Need(verb="eval", purpose="metrics over a data set", extras=("metrics",)),
    Need(verb="train", purpose="train a checkpoint", extras=("train",)),
    Need(verb="data", purpose="check a folder of pairs"),
)
"""Every verb; several lines where it can do less and more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that some extra asks for."""

    name: str
    version: str
    """Of the installed one; empty if there is none."""
    asked: str
    """Version range, such as ``>=1.20``."""
    fits: bool
    extras: tuple[str, ...]
    """Extras that ask for it; empty: every install needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """A library that builds engines."""

    name: BuilderName
    version: str
    """Empty if it is not installed or does not load."""
    targets: tuple[str, ...]
    """What it builds for without a GPU."""
    obstacle: str
    """Why it cannot build here; empty if it can."""
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Whether one use of a verb is possible here."""

    verb: str
    purpose: str
    missing: tuple[str, ...]
    """What is missing; empty if nothing is."""
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was found."""

    version: str
    python: str
    system: str
    gpus: tuple[Gpu, ...]
    providers: tuple[str, ...]
    """ONNX Runtime's execution providers, as it names them."""
    builders: tuple[Builder, ...]
    clip_weights: str
    """Where CLIP's weights are; empty if they were not found."""
    packages: tuple[Package, ...]
    uses: tuple[Use, ...]


def examine() -> Report:
    """Look at this machine; loads ONNX Runtime here, and each builder in a process of its own."""
    packages = tuple(_packages())
    gpus = tuple(installed_gpus())
    clip = _clip_weights()
    return Report(
        version=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        gpus=gpus,
        providers=_providers(),
        builders=tuple(_builder(name, gpus) for name in BUILDERS),
        clip_weights=clip,
        packages=packages,
        uses=tuple(use_of(need, packages, has_gpu=bool(gpus), has_clip=bool(clip)) for need in NEEDS),
    )


def use_of(need: Need, packages: Iterable[Package], *, has_gpu: bool, has_clip: bool) -> Use:
    """Return whether a need is met."""
    wanted = [package for package in packages if not package.extras or set(package.extras) & set(need.extras)]
    bad = [package for package in wanted if not package.fits]
    missing = [f"{package.name}{package.asked}" for package in bad]
    remedies = []
    if bad:
        bare = any(not package.extras for package in bad)
        extras = [extra for extra in need.extras if any(extra in package.extras for package in bad)]
        named = f"[{','.join(extras)}]" if extras else ""
        remedies.append(f'pip install {"--upgrade " if bare else ""}"{DISTRIBUTION}{named}"')
    if need.gpu and not has_gpu:
        missing.append("an NVIDIA GPU")
        remedies.append("run it on a machine with an NVIDIA GPU and its driver")
    if need.clip and not has_clip:
        missing.append("CLIP's weights")
        remedies.append("upfusion text says which file to download, and where to put it")
    return Use(verb=need.verb, purpose=need.purpose, missing=tuple(missing), remedy="; ".join(remedies))


def requirements_by_extra() -> dict[str, list[Requirement]]:
    """Return what each extra asks for, nested extras resolved; the key ``""`` is the bare install."""
    declared = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []

    def asked_by(extra: str) -> list[Requirement]:
        found = []
        for requirement in declared:
            bare = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if bare != (not extra) or (extra and not requirement.marker.evaluate({"extra": extra})):  # type: ignore[union-attr]
                continue
            if requirement.name == DISTRIBUTION:
                found += [inner for nested in requirement.extras for inner in asked_by(nested)]
            else:
                found.append(requirement)
        return found

    return {extra: asked_by(extra) for extra in ("", *names)}


def _packages() -> list[Package]:
    """Return every package that an extra of a user asks for, with what is installed."""
    used = {extra for need in NEEDS for extra in need.extras}
    asked: dict[str, tuple[Requirement, list[str]]] = {}
    for extra, requirements in requirements_by_extra().items():
        for requirement in requirements if not extra or extra in used else ():
            asked.setdefault(requirement.name, (requirement, []))[1].append(extra)
    found = []
    for name, (requirement, extras) in sorted(asked.items()):
        version = _installed_version(name)
        found.append(
            Package(
                name=name,
                version=version,
                asked=str(requirement.specifier),
                fits=bool(version) and requirement.specifier.contains(version, prereleases=True),
                extras=() if "" in extras else tuple(dict.fromkeys(extras)),
            )
        )
    return found


def _installed_version(name: str) -> str:
    """Return the version of a distribution or of a substitute; empty if there is none."""
    for candidate in (name, *SUBSTITUTES.get(name, ())):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _providers() -> tuple[str, ...]:
    """Return the execution providers of the installed ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError:
        return ()
    return tuple(onnxruntime.get_available_providers())


def _builder(name: BuilderName, gpus: tuple[Gpu, ...]) -> Builder:
    """Return what a library can do here."""
    targets: tuple[str, ...] = ()
    version = obstacle = remedy = ""
    try:
        choose_builder(BuildOptions(builder=name), gpus)
    except UPFusionError as error:
        obstacle, remedy = error.problem, error.hint
    if is_installed(name):
        try:
            version, targets = describe(name)
        except UPFusionError as error:
            obstacle, remedy = error.problem, error.hint or INSTALL[name]
    return Builder(name=name, version=version, targets=targets, obstacle=obstacle, remedy=remedy)


def _clip_weights() -> str:
    """Return where the weights of the text encoder are; empty if neither named nor in the hub's cache."""
    from upfusion.text import CLIP_WEIGHTS_ENV

    named = os.environ.get(CLIP_WEIGHTS_ENV, "")
    if named and os.path.isfile(named):
        return named
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return ""
    for file in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        cached = try_to_load_from_cache("timm/vit_base_patch32_clip_224.openai", file)
        if isinstance(cached, str):
            return cached
    return ""
