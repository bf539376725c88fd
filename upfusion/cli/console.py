"""The one console: errors, progress and tables on stderr, results on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from upfusion.runtime.errors import UPFusionError

console = Console(stderr=True, highlight=False)


def progress_bar() -> Progress:
    """Return a bar for counted work; draws nothing where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def fraction_bar() -> Progress:
    """Return a bar for work whose fraction done is known (total 1); draws nothing where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def spinner() -> Progress:
    """Return a spinner with the elapsed time, for work of unknown length."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )


def check_line(good: bool, name: str, text: str, *, to: Console = console) -> None:
    """Print one check: a mark, what was checked, the value and its limit."""
    mark = "[green]✓[/]" if good else "[red]✗[/]"
    to.print(f"{mark} {escape(name):<10} {escape(text)}")


def wrote(*paths: object, next_command: str = "") -> None:
    """Say what a command wrote and what to try next."""
    for path in paths:
        console.print(f"wrote {escape(str(path))}")
    if next_command:
        console.print(f"next: {escape(next_command)}")


def print_json(record: Mapping[str, Any]) -> None:
    """Print the result of a command for scripts, on stdout; what is not a finite number becomes null."""
    print(json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """Return a value with null for NaN and infinity, which JSON has no words for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def print_error(error: UPFusionError) -> None:
    """Print what happened and what to do."""
    console.print(f"[bold red]error:[/] {escape(error.problem)}", soft_wrap=True)
    if error.hint:
        console.print(f"[bold]hint:[/]  {escape(error.hint)}", soft_wrap=True)
