"""``upfusion eval``: a table like the paper's, of artifacts and simple baselines on a dataset."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upfusion.cli.console import console, print_json, progress_bar, wrote

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from upfusion.evaluation.run import Method
    from upfusion.evaluation.table import MethodInfo, Table

JOURNAL = "measured.jsonl"
"""Kept in the output folder: what an interrupted evaluation need not compute again."""


def evaluate_command(
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", "-d", metavar="DIR", help="Folder of a dataset; may be given several times."),
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Option("--model", "-m", help="Artifact to measure (checkpoint, ONNX, engine); several are compared."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for pairs.csv, table.json, table.md and the plot.")
    ] = Path("evaluation"),
    split: Annotated[Literal["test", "train", "all"], typer.Option(help="Which of the dataset's pairs.")] = "test",
    metrics: Annotated[
        str, typer.Option(help="Names with commas between, 'paper' for its five, 'all', or 'list' to see them.")
    ] = "paper",
    baselines: Annotated[
        bool, typer.Option(help="Also measure average, maximum, Laplacian pyramid and guided filter.")
    ] = True,
    plot: Annotated[Literal["bar", "violin", "none"], typer.Option(help="Picture beside the table.")] = "bar",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use the first N pairs of each dataset only.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes for metrics; default: the cores, at most 8.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, tensorrt (ONNX Runtime's).")] = "auto",
    text: Annotated[Path | None, typer.Option(help="Text feature for checkpoints.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Measure fusion quality on a dataset and print a table with the paper's own numbers beside it.

    Knows the layouts of MSRS, LLVIP, M3FD, RoadScene, TNO, Harvard and GFP-PC as they are downloaded; any folder
    with vis/ and ir/ (or a/ and b/) will do. Images are fused as luma, as the paper measures them.

    Interrupted, the same command goes on where it stopped: values are kept in the output folder, by the digest of the
    artifact and of the images.

    Example: upfusion eval --data data/msrs -m fusion.onnx -m model.safetensors -o msrs/
    """
    import dataclasses

    from upfusion.evaluation.datasets import select_pairs
    from upfusion.evaluation.plot import check_matplotlib, write_plot
    from upfusion.evaluation.run import evaluate_selection
    from upfusion.evaluation.table import write_tables
    from upfusion.runtime.errors import InputError
    from upfusion.runtime.files import check_folder, create_folder

    if metrics == "list":
        _print_metrics()
        return
    names = _metric_names(metrics)
    if plot != "none":
        check_matplotlib()  # now, not after the work
    if not data:
        raise InputError("no dataset was given", "upfusion eval --data data/msrs -m fusion.onnx")
    selections = [select_pairs(folder, split) for folder in data]
    selections = [dataclasses.replace(chosen, pairs=chosen.pairs[:limit]) for chosen in selections]
    check_folder(output)
    with ExitStack() as opened, progress_bar() as bar:
        methods, infos = _methods(models or [], baselines, device, text, opened)
        create_folder(output)
        tables = []
        for selection in selections:
            task = bar.add_task(selection.name, total=len(selection.pairs))
            table = evaluate_selection(
                selection,
                methods,
                infos,
                names,
                journal=output / JOURNAL,
                workers=workers,
                done=functools.partial(_advance, bar, task),
            )
            tables.append(table)
    written = write_tables(tables, output)
    if plot != "none":
        written.append(output / f"{plot}.png")
        write_plot(tables, written[-1], plot)
    if json:
        print_json({"tables": [table.to_dict() for table in tables]})
    else:
        for table in tables:
            _print_table(table)
        for note in dict.fromkeys(note for table in tables for note in table.notes()):
            console.print(f"note: {note}", style="dim")
    wrote(*written)


def _advance(bar: Progress, task: TaskID, _pair: str) -> None:
    """Count a pair that is done."""
    bar.advance(task)


def _methods(
    models: list[Path], baselines: bool, device: str, text: Path | None, opened: ExitStack
) -> tuple[dict[str, Method], dict[str, MethodInfo]]:
    """Open the artifacts and return what fuses, baselines first, with where each comes from."""
    from upfusion import __version__
    from upfusion.cli.artifacts import open_fuser
    from upfusion.evaluation.baselines import BASELINES, on_luma
    from upfusion.evaluation.table import MethodInfo
    from upfusion.runtime.errors import InputError
    from upfusion.runtime.files import sha256_of

    methods: dict[str, Method] = {}
    infos: dict[str, MethodInfo] = {}
    if baselines:
        for name, function in BASELINES.items():
            methods[name] = on_luma(function)
            infos[name] = MethodInfo(kind="baseline", identity=f"{name} of upfusion {__version__}")
    for path in models:
        name = path.stem if [other.stem for other in models].count(path.stem) == 1 else str(path)
        if name in methods:
            raise InputError(f"two methods are named {name}", f"give {path} once, and no artifact a baseline's name")
        fuser = opened.enter_context(open_fuser(path, device=device, text=text))
        identity = f"sha256:{sha256_of(path)} on {fuser.device}"
        if text is not None:
            identity += f" text sha256:{sha256_of(text)}"
        methods[name] = functools.partial(fuser, color="gray")
        infos[name] = MethodInfo(kind="artifact", identity=identity, path=str(path))
    if not methods:
        raise InputError("nothing to measure: no artifact, and --no-baselines", "give an artifact with -m")
    return methods, infos


def _metric_names(metrics: str) -> tuple[str, ...]:
    from upfusion.metrics import METRICS, PAPER_METRICS, metric_named
    from upfusion.runtime.errors import InputError

    if metrics in ("paper", "all"):
        return PAPER_METRICS if metrics == "paper" else tuple(METRICS)
    names = tuple(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip()))
    if not names:
        raise InputError(f"--metrics {metrics} names none", "upfusion eval --metrics list shows them")
    for name in names:
        metric_named(name)
    return names


def _print_table(table: Table) -> None:
    """Print the means on stdout: they are the command's result."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    from upfusion.evaluation.paper import PAPER_METHOD
    from upfusion.evaluation.table import arrow

    drawn = RichTable(title=f"{table.dataset}, {table.split}, {len(table.pairs)} pairs", title_justify="left")
    drawn.add_column("method")
    for name in table.names:
        drawn.add_column(f"{name} {arrow(name)}", justify="right")
    for method in table.values:
        cells = [
            f"[bold]{table.mean(method, name):.4f}[/]"
            if table.best(name) == method
            else f"{table.mean(method, name):.4f}"
            for name in table.names
        ]
        drawn.add_row(escape(method), *cells)
    if printed := table.paper():
        drawn.add_section()
        drawn.add_row(PAPER_METHOD, *(f"{printed[n]:.4f}" if n in printed else "" for n in table.names), style="italic")
    Console(highlight=False).print(drawn)


def _print_metrics() -> None:
    """Print what each metric is, on stdout."""
    from rich.console import Console
    from rich.table import Table as RichTable

    from upfusion.evaluation.table import arrow
    from upfusion.metrics import METRICS

    drawn = RichTable("metric", "range", "definition")
    for name, metric in METRICS.items():
        drawn.add_row(f"{name} {arrow(name)}", f"{metric.lowest:.4g} .. {metric.highest:.4g}", metric.definition)
    Console(highlight=False).print(drawn)
