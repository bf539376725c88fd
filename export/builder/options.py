"""What the user can ask of a build."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from upfusion.runtime.errors import InputError

BuilderName = Literal["tensorrt", "tensorrt-rtx"]
BUILDERS: tuple[BuilderName, ...] = ("tensorrt", "tensorrt-rtx")

LOWEST_OPTIMIZATION, HIGHEST_OPTIMIZATION = 0, 5
TARGET_PLACEHOLDER = "{target}"
"""In an engine's path: one engine per target instead of one for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How the engine shall be built; None leaves a choice to the library."""

    builder: BuilderName | Literal["auto"] = "auto"
    targets: tuple[str, ...] = ()
    """Compute capabilities such as ``sm86``. TensorRT-RTX builds for all of them at once, and without any for every
    GeForce and RTX GPU since Ampere; TensorRT always builds for the GPU it runs on."""
    timing_cache: Path | None = None
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    aux_streams: int = 0
    """Streams beside the main one on which layers may run at the same time. Each keeps maps of its own alive: the
    shipped network at 480x640 needs three times the memory with as many as TensorRT-RTX likes (328 MB, 113 MB with
    none), and its large layers fill a GPU each by itself."""
    verbose: bool = False
    """Report the library's INFO messages too."""

    def __post_init__(self) -> None:
        if self.builder not in ("auto", *BUILDERS):
            raise InputError(f"there is no builder {self.builder!r}", f"use auto, {' or '.join(BUILDERS)}")
        for target in self.targets:
            if not re.fullmatch(r"sm\d{2,3}", target):
                raise InputError(
                    f"{target!r} is no compute capability", "write sm and the digits, such as --target sm86,sm89"
                )
        if len(set(self.targets)) < len(self.targets):
            raise InputError(f"a target is named twice in {','.join(self.targets)}", "name each target once")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise InputError("a workspace of no bytes builds nothing", "use --workspace 4, or leave it away")
        if self.aux_streams < 0:
            raise InputError(f"{self.aux_streams} auxiliary streams cannot be", "use --aux-streams 0 or more")
        level = self.optimization_level
        if level is not None and not LOWEST_OPTIMIZATION <= level <= HIGHEST_OPTIMIZATION:
            raise InputError(
                f"optimization level {level} does not exist",
                f"use {LOWEST_OPTIMIZATION} (fast build) to {HIGHEST_OPTIMIZATION} (slow build)",
            )


def targets_from_text(text: str | None) -> tuple[str, ...]:
    """Return ``("sm86", "sm89")`` for ``"sm86,sm89"``; 8.6 and SM_86 mean sm86."""
    if not text:
        return ()
    plain = text.lower().replace(" ", "").replace("sm_", "sm")
    return tuple(
        f"sm{target.replace('.', '')}" if re.fullmatch(r"\d+\.\d", target) else target for target in plain.split(",")
    )


def engines_from_pattern(path: str | Path, options: BuildOptions) -> list[tuple[Path, BuildOptions]]:
    """Return the engines to build: one, or one per target where the path's name holds ``{target}``.

    One engine for several targets is the default, since TensorRT-RTX compiles the kernels on the user's GPU: the
    file for two targets was 432 bytes larger than for one (0.94 MB, TensorRT-RTX 1.7.1, tests' graph).

    Raises:
        InputError: ``{target}`` without targets.
    """
    path = Path(path)
    if TARGET_PLACEHOLDER not in path.name:
        return [(path, options)]
    if not options.targets:
        raise InputError(f"{path} names a file per target, but no target is given", "add --target sm86,sm89")
    return [
        (
            path.with_name(path.name.replace(TARGET_PLACEHOLDER, target)),
            dataclasses.replace(options, targets=(target,)),
        )
        for target in options.targets
    ]
