"""``upfusion inspect``: what graphs cost to run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from upfusion.cli.console import print_json, spinner
from upfusion.cli.sizes import parse_sizes

ALL = "all"
PIPE_WIDTH = 130
"""Columns where stdout is no terminal: every table fits, and nothing is cut off in a file."""


def inspect(
    graphs: Annotated[
        list[Path], typer.Argument(metavar="GRAPH...", help="The .onnx files to look at; several stand side by side.")
    ],
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Add the least time on a GPU: H200, H100, A100, L4, 'RTX 4090', 'Orin AGX', ...; all: on each.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH where the inputs vary; default: what the graph is tuned for."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Count operations, bytes, weights, live memory and nodes of graphs, per block and in all.

    Bytes are counted twice: as if every node ran alone, and with the fusions that a compiler can be expected to make
    (upfusion/export/cost/kernels.py states them). Nothing is run: these are counts, and with --gpu the time that
    datasheet figures allow at best.

    Examples:

      upfusion inspect fusion.onnx --gpu H200

      upfusion export model.safetensors -o plain.onnx --plain && upfusion inspect fusion.onnx plain.onnx --gpu all
    """
    from upfusion.export.cost import GPUS, cost_of, gpu_named, read_graph, rooflines_of
    from upfusion.export.cost.report import comparison_of, gpus_table, record_of, table_of

    everywhere = gpu is not None and gpu.lower() == ALL
    named = gpu_named(gpu) if gpu and not everywhere else None
    best = parse_sizes(size).optimum if size else None
    costs, least_ms = {}, {}
    with spinner() as bar:
        for path in graphs:
            bar.add_task(f"counting {path.name}")
            graph = read_graph(path, best)
            costs[str(path)] = cost_of(graph, named)
            least_ms[str(path)] = rooflines_of(graph, GPUS) if everywhere else {}
    if json:
        rooflines = {name: {"rooflines_ms": found} if found else {} for name, found in least_ms.items()}
        print_json({name: record_of(cost) | rooflines[name] for name, cost in costs.items()})
        return
    from rich.console import Console

    out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    short = {str(path): path.name for path in graphs}
    if len(set(short.values())) < len(short):
        short = {name: name for name in short}
    for name, cost in costs.items():
        out.print(table_of(cost, name))
        out.print()
    if len(costs) > 1:
        out.print(comparison_of({short[name]: cost for name, cost in costs.items()}))
    if everywhere:
        out.print(gpus_table({short[name]: found for name, found in least_ms.items()}))
