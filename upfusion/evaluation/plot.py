"""A picture of a table: one panel per metric, bars of the means or violins of the values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import upfusion
from upfusion.evaluation.paper import PAPER_METHOD
from upfusion.evaluation.table import Table, arrow
from upfusion.runtime.errors import InputError, MissingDependencyError
from upfusion.runtime.files import replacing

Kind = Literal["bar", "violin"]
KINDS: tuple[Kind, ...] = ("bar", "violin")
SUFFIXES = (".png", ".svg", ".pdf")
PANEL_INCHES = (2.6, 3.2)
_LEAST_FOR_VIOLIN = 3
"""A density of fewer values says nothing; their points are drawn alone."""


def write_plot(tables: Sequence[Table], path: Path, kind: Kind = "bar") -> None:
    """Write a figure with a row of panels per table.

    Bars are means, whiskers one standard deviation over the pairs. Violins show the distribution over the pairs, a
    line the mean. A dashed line is the paper's printed value.

    Raises:
        InputError: an unknown kind or file type.
        MissingDependencyError: matplotlib is not installed.
    """
    if kind not in KINDS:
        raise InputError(f"unknown plot {kind!r}", f"use {' or '.join(KINDS)}")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot plot to {path.suffix or 'a file without a suffix'}", f"use {SUFFIXES}")
    check_matplotlib()
    from matplotlib.figure import Figure

    columns = len(tables[0].names)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * len(tables)), layout="constrained")
    panels = figure.subplots(len(tables), columns, squeeze=False)
    for table, row in zip(tables, panels, strict=True):
        for name, panel in zip(table.names, row, strict=True):
            _draw(panel, table, name, kind)
        row[0].set_ylabel(f"{table.dataset} ({len(table.pairs)} pairs)")
    # One legend below all panels: inside one it would cover values.
    lines = [line for panel in panels.flat for line in panel.get_legend_handles_labels()[0]]
    if lines:
        figure.legend(handles=lines[:1], loc="outside lower center", fontsize=8, frameon=False)
    with replacing(path) as temporary:
        tool = "Software" if path.suffix == ".png" else "Creator"
        figure.savefig(temporary, dpi=150, metadata={tool: f"upfusion {upfusion.__version__}"})


def check_matplotlib() -> None:
    """Do nothing if plots can be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "plots need matplotlib", "pip install 'upfusion[metrics]', or go without: --plot none"
        ) from error


def _draw(panel, table: Table, name: str, kind: Kind) -> None:  # type: ignore[no-untyped-def]
    methods = list(table.values)
    places = range(len(methods))
    columns = [table.column(method, name) for method in methods]
    means = [table.mean(method, name) for method in methods]
    if kind == "bar":
        panel.bar(places, means, color=[f"C{place}" for place in places], width=0.7)
        errors = [table.deviation(method, name) for method in methods]
        panel.errorbar(places, means, yerr=errors, fmt="none", ecolor="0.3", elinewidth=0.8, capsize=2)
        _leave_out_the_common_part(panel, columns)
    else:
        if len(table.pairs) >= _LEAST_FOR_VIOLIN and all(max(column) > min(column) for column in columns):
            panel.violinplot(columns, positions=list(places), widths=0.8, showextrema=False)
        for place, column in zip(places, columns, strict=True):
            panel.plot([place] * len(column), column, ".", color="0.4", markersize=2, alpha=0.5)
        panel.hlines(means, [p - 0.25 for p in places], [p + 0.25 for p in places], color="black", linewidth=1.2)
    if name in (printed := table.paper()):
        panel.axhline(printed[name], linestyle="--", linewidth=0.9, color="black", label=PAPER_METHOD)
    panel.set_title(f"{name} {arrow(name)}", fontsize=9)
    panel.set_xticks(list(places), methods, rotation=60, ha="right", fontsize=7)
    panel.tick_params(axis="y", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)


def _leave_out_the_common_part(panel, columns: list[list[float]]) -> None:  # type: ignore[no-untyped-def]
    """Start the axis above 0 where all values lie close together far from it, such as Q_NCIE at 0.80 to 0.85."""
    low, high = min(map(min, columns)), max(map(max, columns))
    if low > 0 and high - low < 0.2 * high:
        margin = 0.15 * (high - low) or 0.05 * high
        panel.set_ylim(low - margin, high + margin)
