"""Build and accept in one step: the engine appears under its name only with a pass."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from upfusion.export.acceptance import ACCEPTED
from upfusion.export.builder import BuildOptions, engine_from_onnx, installed_gpus
from upfusion.export.builder.process import OnProgress
from upfusion.runtime.errors import DeviceError
from upfusion.runtime.manifest import Manifest, manifest_path

REJECTED_SUFFIX = ".rejected"
"""Behind the name of a rejected engine, which keeps it from being loaded by mistake."""


def require_gpu() -> None:
    """Return if an engine can be run here.

    Raises:
        DeviceError: there is no GPU.
    """
    if not installed_gpus():
        raise DeviceError(
            "--accept runs the engine, and there is no NVIDIA GPU here",
            "build without --accept, and run upfusion accept on the machine with the GPU",
        )


def accepted_engine_from_onnx(
    onnx_path: Path,
    engine_path: Path,
    options: BuildOptions,
    accept: Callable[[Path], Manifest],
    progress: OnProgress | None = None,
) -> tuple[Path, Manifest]:
    """Build an engine, let ``accept`` judge it, and return where it lies now, and its manifest.

    A pass puts it at ``engine_path``. A rejected one is kept beside it with ``.rejected`` behind the name, its report
    in its manifest; an engine that was at ``engine_path`` before then stays.

    Args:
        onnx_path: the graph.
        engine_path: where an accepted engine is to lie.
        options: as for ``engine_from_onnx``.
        accept: judges the engine at the path it is given, writes the verdict into its manifest, and returns that.
        progress: as for ``engine_from_onnx``.

    Raises:
        UPFusionError: the build or the judging failed; then no engine is left.
    """
    with _unjudged(engine_path) as plan:
        engine_from_onnx(onnx_path, plan, options, progress)
        manifest = accept(plan)
        passed = manifest.acceptance["verdict"] == ACCEPTED
        place = engine_path if passed else engine_path.with_name(engine_path.name + REJECTED_SUFFIX)
        os.replace(plan, place)
        os.replace(manifest_path(plan), manifest_path(place))
    return place, manifest


@contextlib.contextmanager
def _unjudged(engine_path: Path) -> Iterator[Path]:
    """Yield a hidden name beside the engine's, and remove what is left under it afterwards."""
    plan = engine_path.with_name(f".unjudged-{engine_path.stem}.engine")
    try:
        yield plan
    finally:
        for left in engine_path.parent.glob(plan.name + "*"):  # the manifest, and kernels that the runtime kept
            left.unlink(missing_ok=True)
