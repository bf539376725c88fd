"""``upfusion doctor``: what works here, and how to get the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from upfusion.cli.console import check_line, console, print_json

if TYPE_CHECKING:
    from upfusion.doctor import Report


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Say what is installed, which GPU is here, what each verb can do with it, and how to get what is missing.

    Nothing is installed or changed, and nothing here is an error: the exit code is always 0.
    """
    import dataclasses

    from upfusion.doctor import examine

    with console.status("looking around"):
        report = examine()
    if json:
        print_json(dataclasses.asdict(report))
    else:
        _print(report)


def _print(report: Report) -> None:
    """Print the report for people, on stdout: it is the command's result."""
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False)
    out.print(f"upfusion {report.version}, Python {report.python}, {report.system}")
    out.print("\n[bold]GPU[/]")
    for gpu in report.gpus:
        memory = f"{gpu.memory_bytes / 2**30:.0f} GiB"
        check_line(True, gpu.target, f"{gpu.name}, {memory}, driver {gpu.driver}", to=out)
    if not report.gpus:
        check_line(False, "none", "no NVIDIA GPU, or no driver: engines can be built (tensorrt-rtx), not run", to=out)
    out.print("\n[bold]ONNX Runtime[/]")
    check_line(bool(report.providers), "providers", ", ".join(report.providers) or "not installed", to=out)
    out.print("\n[bold]Builders[/]")
    for builder in report.builders:
        what = f"{builder.version} for {', '.join(builder.targets) or 'the GPU here'}" if builder.version else ""
        text = "; ".join(filter(None, (what, builder.obstacle, builder.remedy)))
        check_line(not builder.obstacle, builder.name, text, to=out)
    out.print("\n[bold]Packages[/]")
    packages = Table("package", "asked", "installed", "for", box=None, padding=(0, 2))
    for package in report.packages:
        installed = f"[{'green' if package.fits else 'yellow'}]{package.version or '-'}[/]"
        packages.add_row(package.name, package.asked, installed, ", ".join(package.extras) or "everything")
    out.print(packages)
    out.print("\n[bold]Verbs[/]")
    for use in report.uses:
        text = use.purpose
        if use.missing:
            text += f": needs {', '.join(use.missing)}. {use.remedy}"
        check_line(not use.missing, use.verb, text, to=out)
    if not report.clip_weights:
        out.print("\nCLIP's weights were not found: prompts cannot be encoded here, text.npz files can be used")
