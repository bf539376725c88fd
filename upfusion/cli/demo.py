"""``upfusion demo``: the whole road on the shipped network, with a picture at the end."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfusion.cli.console import check_line, console, spinner, wrote

if TYPE_CHECKING:
    from rich.progress import Progress

    from upfusion.runtime import Fuser
    from upfusion.runtime.pairs import Pair

SIZES = "128x128:480x640:768x1024"
"""One graph for both sample sizes."""
TIMED_RUNS = 5
VERIFY_LEVELS = 1
"""Largest difference allowed between the ONNX graph and PyTorch, both in fp32, in 8-bit levels. PyTorch computes with
the graph's decisions: drawn pictures have flat areas, where even fp32 runtimes need not rank alike."""


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")] = Path(
        "demo"
    ),
) -> None:
    """Export, build, verify and fuse with the shipped tiny network, on pictures that upfusion draws itself.

    Takes about two minutes on two CPU cores and needs no GPU and no download. Ends with side_by_side.png (visible,
    infrared, fused) and a table of what was made.
    """
    import skimage  # noqa: F401  (here and not after the samples: what is missing shows before anything is written)

    import upfusion.export.onnx_export  # noqa: F401
    from upfusion.checkpoint import load_checkpoint
    from upfusion.cli.artifacts import open_fuser
    from upfusion.export.accuracy.measure import measure
    from upfusion.runtime import load
    from upfusion.runtime.errors import VerificationError
    from upfusion.runtime.files import create_folder
    from upfusion.samples import write_samples
    from upfusion.weights import TINY

    create_folder(output)
    pairs = write_samples(output / "samples")
    check_line(True, "samples", f"{len(pairs)} pairs drawn")
    with spinner() as bar:
        rows = [_export(TINY, output / "tiny.onnx", "fp32", bar), _export(TINY, output / "tiny.fp16.onnx", "fp16", bar)]
        rows.append(_build(output / "tiny.fp16.onnx", output / "tiny.fp16.engine", bar))
        task = bar.add_task("verifying the graph against PyTorch")
        found = measure(output / "tiny.onnx", load_checkpoint(TINY), None, pairs, tf32=False)
        bar.update(task, description="fusing")
        with load(output / "tiny.onnx") as graph, open_fuser(TINY) as reference:
            timings = {"ONNX Runtime": _fuse(graph, pairs, output), "PyTorch": _milliseconds(reference, pairs[0])}
            device = graph.device
    numerics = max(pair.numerics.max_levels for pair in found.pairs)
    together = max(pair.together.max_levels for pair in found.pairs)
    moved = found.flips() + found.tied
    own = f", {together} with its own ({moved} moved, {found.tied} of them at exact ties)" if moved else ""
    check_line(
        numerics <= VERIFY_LEVELS,
        "verify",
        f"ONNX against PyTorch: max |Δ| {numerics} levels with the same decisions{own}, on {len(pairs)} pairs",
    )
    if numerics > VERIFY_LEVELS:
        raise VerificationError(
            f"{output / 'tiny.onnx'} differs from the network by {numerics} levels",
            "report this with the output of: upfusion doctor",
        )
    _print_table(rows, timings, device)
    picture = _side_by_side(pairs, output)
    wrote(picture, next_command=f"upfusion fuse VISIBLE.png INFRARED.png -m {output / 'tiny.onnx'} -o fused.png")


def _export(checkpoint: Path, path: Path, precision: str, bar: Progress) -> tuple[str, str, str]:
    """Export the shipped network and return a row of the table: file, size, what is known about it."""
    from upfusion.checkpoint import load_checkpoint
    from upfusion.cli.sizes import parse_sizes
    from upfusion.export.onnx_export import ExportOptions, export_onnx

    task = bar.add_task(f"{precision}: reading the checkpoint")
    options = ExportOptions(precision=precision, sizes=parse_sizes(SIZES), io="image")  # type: ignore[arg-type]
    start = time.perf_counter()
    manifest = export_onnx(
        load_checkpoint(checkpoint),
        path,
        None,
        options,
        step=lambda what: bar.update(task, description=f"{precision}: {what}"),
    )
    bar.remove_task(task)
    difference = manifest.parity["max_difference"]
    check_line(
        True, "export", f"{path.name} in {time.perf_counter() - start:.0f} s, max |Δ| {difference:.1e} to PyTorch"
    )
    return path.name, _megabytes(path), f"max |Δ| {difference:.1e} to PyTorch in fp32"


def _build(graph: Path, engine: Path, bar: Progress) -> tuple[str, str, str]:
    """Build the engine where a builder is installed and return a row of the table."""
    from upfusion.export.builder import engine_from_onnx
    from upfusion.runtime.errors import DeviceError, MissingDependencyError

    task = bar.add_task("building the engine")
    try:
        manifest = engine_from_onnx(
            graph, engine, progress=lambda phase, done: bar.update(task, description=f"building: {phase} {done:.0%}")
        )
    except (MissingDependencyError, DeviceError) as error:
        check_line(False, "build", f"no engine: {error.problem} ({error.hint})")
        return engine.name, "", "not built: no builder is installed here"
    finally:
        bar.remove_task(task)
    build = manifest.build
    assert build is not None  # an engine's manifest has one
    executed = "executed on a GPU" if build.executed_on_gpu else "not run on a GPU"
    check_line(
        True, "build", f"{engine.name} with {build.builder} {build.version} in {build.seconds:.0f} s, {executed}"
    )
    return engine.name, _megabytes(engine), f"{build.builder} {build.version}, {executed}"


def _fuse(fuser: Fuser, pairs: list[Pair], output: Path) -> float:
    """Write every fused pair and return the median time of the first one in milliseconds."""
    from upfusion.runtime.files import create_folder
    from upfusion.runtime.images import write_image
    from upfusion.runtime.pairs import read_pair

    folder = output / "fused"
    create_folder(folder)
    for pair in pairs:
        write_image(folder / f"{pair.name}.png", fuser(*read_pair(pair)))
    check_line(True, "fuse", f"{len(pairs)} pairs to {folder}")
    return _milliseconds(fuser, pairs[0])


def _milliseconds(fuser: Fuser, pair: Pair) -> float:
    """Return the median time from uint8 images in memory to the fused uint8 image, after one warm-up."""
    from upfusion.runtime.pairs import read_pair

    images = read_pair(pair)
    fuser(*images)
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        fuser(*images)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _print_table(rows: list[tuple[str, str, str]], timings: dict[str, float], device: str) -> None:
    """Print the files and the timings on stdout."""
    from rich.console import Console
    from rich.table import Table

    files = Table("file", "size", "what is known")
    for row in rows:
        files.add_row(*row)
    latency = Table("480x640, uint8 to uint8", f"median of {TIMED_RUNS}, on {device}")
    for name, milliseconds in timings.items():
        latency.add_row(name, f"{milliseconds:.0f} ms")
    out = Console(highlight=False)
    out.print(files)
    out.print(latency)


def _side_by_side(pairs: list[Pair], output: Path) -> Path:
    """Write first, second and fused image of every pair in one picture, a pair a row, and return its path."""
    import numpy as np

    from upfusion.runtime.images import read_image, write_image

    rows = []
    for pair in pairs:
        paths = (pair.first, pair.second, output / "fused" / f"{pair.name}.png")
        images = [read_image(path) for path in paths]
        rows.append(np.hstack([image if image.ndim == 3 else np.repeat(image[..., None], 3, 2) for image in images]))
    width = max(row.shape[1] for row in rows)
    centred = [
        np.pad(row, ((0, 0), ((width - row.shape[1]) // 2, -(-(width - row.shape[1]) // 2)), (0, 0))) for row in rows
    ]
    path = output / "side_by_side.png"
    write_image(path, np.vstack(centred))
    console.print("side_by_side.png: first image, second image, fused image; a pair a row")
    return path


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
