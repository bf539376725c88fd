"""``upfusion bench``: how fast artifacts are, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfusion.cli.console import console, print_json, progress_bar, wrote
from upfusion.cli.numbers import not_nan
from upfusion.cli.sizes import parse_size

if TYPE_CHECKING:
    from upfusion.bench.contender import ImagePair, Opened
    from upfusion.bench.run import BenchResult

PAIRS_KEPT = 16
"""Pairs of --data that are held in memory."""


def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="ONNX files, engines or checkpoints; all in one run.")],
    data: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="VIS IR",
            help=f"Real pairs: two files, or two folders matched by name (the first {PAIRS_KEPT}); default: drawn.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH of the images; default: theirs, or what each artifact is tuned for.", show_default=False
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed rounds; below 100, p99 is little else than max.")] = 30,
    warm_up: Annotated[int, typer.Option(min=0, help="Rounds before that.")] = 5,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Pairs in a call, for throughput, such as 1,4; default: as exported.",
            show_default=False,
        ),
    ] = None,
    contexts: Annotated[str, typer.Option(help="Calls at the same time, for throughput, such as 1,2,4.")] = "1",
    seconds: Annotated[
        float, typer.Option(min=0, callback=not_nan, help="Length of one of the three windows of throughput.")
    ] = 1.5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, tensorrt (ONNX Runtime's).")] = "auto",
    threads: Annotated[
        int, typer.Option(min=0, help="Run ONNX files on the CPU with this many threads; 0: one per core.")
    ] = 0,
    text: Annotated[Path | None, typer.Option(help="Text feature for checkpoints.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write bench.json, bench.md and bench.png here."),
    ] = None,
    plot: Annotated[bool, typer.Option(help="With -o: draw bench.png.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Measure latency with its parts, throughput, and where there is a GPU its energy and the roofline.

    Latency is what a user waits for: uint8 images in host memory to uint8 images in host memory. All artifacts are
    called in turn in every round, so ratios hold on a noisy machine. Beside an ONNX file stands the bare
    InferenceSession.run of the same session, which shows what this runtime adds.

    Examples:

      upfusion bench fusion.onnx fusion16.onnx --size 480x640

      upfusion bench fusion.engine fusion.onnx --data vis/ ir/ --runs 200 --batch 1,4 --contexts 1,2,4 -o bench/
    """
    import shlex
    import sys

    from upfusion.bench.plot import check_matplotlib, write_plot
    from upfusion.bench.report import record_of, write_markdown, write_record
    from upfusion.bench.run import BenchOptions, rounds_of
    from upfusion.bench.run import bench as measure
    from upfusion.runtime.files import create_folder

    options = BenchOptions(
        runs=runs,
        warm_up=warm_up,
        batches=_counts(batch, "--batch") if batch else None,
        contexts=_counts(contexts, "--contexts"),
        seconds=seconds,
    )
    if output is not None:
        create_folder(output)
        if plot:
            check_matplotlib()  # now, not after the work
    pairs = _pairs(data)
    with progress_bar() as bar:
        task = bar.add_task("loading", total=rounds_of(len(artifacts), options))
        result = measure(
            _opened(artifacts, device, threads, text),
            pairs,
            options,
            size=parse_size(size) if size else None,
            command=shlex.join(["upfusion", *sys.argv[1:]]),
            images=f"{len(pairs)} pairs of {data[0]} and {data[1]}" if data and pairs else "",
            step=lambda what: bar.update(task, advance=1, description=what),
        )
    if json:
        print_json(record_of(result))
    else:
        _print(result)
    if output is not None:
        write_record(record_of(result), output / "bench.json")
        write_markdown(result, output / "bench.md")
        written = [output / "bench.json", output / "bench.md"]
        if plot:
            write_plot(result, output / "bench.png")
            written.append(output / "bench.png")
        wrote(*written)


def _opened(paths: list[Path], device: str, threads: int, text: Path | None) -> list[Opened]:
    """Load the artifacts; if one cannot be loaded, the others are closed."""
    from upfusion.bench.contender import opened
    from upfusion.cli.artifacts import open_for_bench
    from upfusion.runtime.artifact import CHECKPOINT_SUFFIXES
    from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions

    found: list[Opened] = []
    try:
        for path in paths:
            name = path.name if [other.name for other in paths].count(path.name) == 1 else str(path)
            if path.suffix.lower() in CHECKPOINT_SUFFIXES:
                found.append(open_for_bench(path, device, text, name))
                continue
            options = OnnxRuntimeOptions(threads=threads) if threads and path.suffix == ".onnx" else None
            found.append(opened(path, device, options, name))
    except BaseException:
        for artifact in found:
            artifact.backend.close()
        raise
    return found


def _pairs(data: tuple[Path, Path] | None) -> list[ImagePair] | None:
    """Read the first pairs."""
    from upfusion.runtime.pairs import find_pairs, read_pair

    return [read_pair(pair) for pair in find_pairs(*data)[:PAIRS_KEPT]] if data else None


def _counts(text: str, option: str) -> tuple[int, ...]:
    """Return the numbers of ``1,2,4``.

    Raises:
        InputError: something else.
    """
    from upfusion.runtime.errors import InputError

    try:
        counts = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise InputError(f"{option} {text} is no list of numbers above 0", f"write {option} 1,4")
    return counts


def _print(result: BenchResult) -> None:
    """Print the tables on stdout, since they are the result, and what was not measured on stderr."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from upfusion.bench.report import latency_table, parts_table, throughput_table

    out = Console(highlight=False)
    for title, (head, rows) in (
        (f"ms from uint8 to uint8, {result.options.runs} rounds", latency_table(result)),
        ("where it goes, ms", parts_table(result)),
        ("throughput", throughput_table(result)),
    ):
        table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0, 0, 1))
        for place, name in enumerate(head):
            table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table)
    for artifact in result.artifacts:
        for sentence in artifact.not_measured:
            console.print(f"not measured: {artifact.name}: {sentence}", style="dim", markup=False)
    if result.gpu is None:
        console.print(f"no GPU figures: {result.gpu_note}", style="dim", markup=False)
