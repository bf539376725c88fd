"""``upfusion data``: look after folders of image pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfusion.cli.console import check_line, console, print_json, progress_bar

if TYPE_CHECKING:
    from upfusion.evaluation.check import Report

FAULTY = 1
"""Exit code when a set cannot be used as it is."""

app = typer.Typer(help="Look after folders of image pairs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep ``check`` a verb of its own while it is the only one."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A dataset's folder, or one that holds several.")],
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,
) -> None:
    """Say what is wrong with a folder of image pairs.

    Reads every image and looks for missing partners, unreadable files, sizes that differ within a pair, folders that
    look swapped, copies, lists (train.txt, test.txt) that do not fit the files, and pairs in both lists.

    Exit code 0 when everything can be used, 1 when something cannot, 2 on errors.

    Example: upfusion data check data/msrs
    """
    import dataclasses

    from upfusion.evaluation.check import check_folder

    with progress_bar() as bar:
        task = bar.add_task("reading pairs", total=None)
        reports = check_folder(folder, done=lambda name: bar.advance(task))
    for report in reports:
        _print_report(report)
    if json:
        print_json({"sets": [{**dataclasses.asdict(r), "folder": str(r.folder), "good": r.good} for r in reports]})
    if not all(report.good for report in reports):
        raise typer.Exit(FAULTY)


def _print_report(report: Report) -> None:
    from rich.markup import escape

    splits = ", ".join(f"{count} {split}" for split, count in report.splits.items()) or "no split"
    sizes = ", ".join(f"{count} of {size}" for size, count in list(report.sizes.items())[:3])
    if len(report.sizes) > 3:
        sizes += f" and {len(report.sizes) - 3} more sizes"
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.color.items())
    text = f"{report.pairs} pairs ({splits}), {report.first} + {report.second}"
    check_line(report.good, report.dataset, f"{text} in {report.folder}")
    if report.pairs:
        console.print(f"  sizes: {sizes}; first image: {kinds}", soft_wrap=True)
    for finding in report.findings:
        color = "red" if finding.severity == "error" else "yellow"
        console.print(
            f"  [{color}]{finding.severity}[/] {escape(f'{finding.where}: {finding.problem}')}", soft_wrap=True
        )
        if finding.hint:
            console.print(f"    {escape(finding.hint)}", soft_wrap=True)
