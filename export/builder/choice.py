"""Which library builds the engine, and why not the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from upfusion.export.builder import library
from upfusion.export.builder.gpus import Gpu
from upfusion.export.builder.options import BUILDERS, BuilderName, BuildOptions
from upfusion.runtime.errors import DeviceError, InputError, MissingDependencyError

RTX_MINIMUM = (7, 5)
"""Turing; the oldest GPU that TensorRT-RTX runs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A library and the reason for it."""

    builder: BuilderName
    reason: str


def choose_builder(
    options: BuildOptions,
    gpus: Sequence[Gpu],
    is_installed: Callable[[BuilderName], bool] = library.is_installed,
) -> Choice:
    """Return the library that the options name, or with ``auto`` the better one that is usable here.

    TensorRT is preferred on the GPU that will run the engine, because it measures its kernels there. TensorRT-RTX is
    preferred for other GPUs and without one.

    Raises:
        MissingDependencyError: the named library is not installed, or with ``auto`` none is.
        DeviceError: TensorRT without a GPU.
        InputError: TensorRT for another GPU than the one here.
    """
    obstacles = {name: _obstacle(name, options, gpus, is_installed(name)) for name in BUILDERS}
    if options.builder != "auto":
        if obstacle := obstacles[options.builder]:
            raise obstacle
        return Choice(builder=options.builder, reason="as asked")
    if obstacles["tensorrt"] is None:
        return Choice(builder="tensorrt", reason=f"it tunes for the {gpus[0].name} here")
    without = f"tensorrt is not usable: {obstacles['tensorrt'].problem}"
    if obstacles["tensorrt-rtx"] is None:
        return Choice(builder="tensorrt-rtx", reason=without)
    raise MissingDependencyError(
        f"no builder is usable here. {without}; tensorrt-rtx is not usable: {obstacles['tensorrt-rtx'].problem}",
        f"{library.INSTALL['tensorrt-rtx']} (builds anywhere, runs on GeForce and RTX), or on the GPU that runs the "
        f"engine: {library.INSTALL['tensorrt']}",
    )


def _obstacle(
    name: BuilderName, options: BuildOptions, gpus: Sequence[Gpu], installed: bool
) -> MissingDependencyError | DeviceError | InputError | None:
    """Return what keeps a library from building for these options, as the error to raise; None if nothing does."""
    if not installed:
        return MissingDependencyError(f"{library.MODULES[name]} is not installed", library.INSTALL[name])
    if name == "tensorrt":
        if not gpus:
            return DeviceError(
                "TensorRT builds on the GPU that runs the engine, and there is none here",
                "build on that machine, or use --builder tensorrt-rtx --target sm86",
            )
        if options.targets and options.targets != (gpus[0].target,):
            return InputError(
                f"TensorRT builds for the GPU here ({gpus[0].name}, {gpus[0].target}), not for "
                f"{','.join(options.targets)}",
                "leave --target away, build on that GPU, or use --builder tensorrt-rtx",
            )
    return None
