"""``upfusion inspect``: what a graph costs to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upfusion.cli.console import print_json, spinner
from upfusion.cli.sizes import parse_sizes


def inspect(
    graph: Annotated[Path, typer.Argument(help="The .onnx file to look at.")],
    against: Annotated[
        Path | None,
        typer.Option(help="A second graph to compare with, such as the plain export.", show_default=False),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Add the least time on a GPU: H200, H100, A100, L4, 'RTX 4090', 'Orin AGX', ...")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH where the inputs vary; default: what the graph is tuned for."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Count operations, bytes, weights, live memory and nodes of a graph, per block and in all.

    Bytes are counted twice: as if every node ran alone, and with the fusions that a compiler can be expected to make
    (upfusion/export/cost/kernels.py states them). Nothing is run: these are counts, and with --gpu the time that
    datasheet figures allow at best.

    Examples:

      upfusion inspect fusion.onnx --gpu H200

      upfusion inspect fusion.onnx --against plain.onnx --json
    """
    from upfusion.export.cost import cost_of, gpu_named, read_graph
    from upfusion.export.cost.report import comparison_of, record_of, table_of

    named = gpu_named(gpu) if gpu else None
    best = parse_sizes(size).optimum if size else None
    costs = {}
    with spinner() as bar:
        for path in filter(None, (graph, against)):
            bar.add_task(f"counting {path.name}")
            costs[path] = cost_of(read_graph(path, best), named)
    if json:
        print_json({str(path): record_of(cost) for path, cost in costs.items()})
        return
    from rich.console import Console

    out = Console(highlight=False)
    for path, cost in costs.items():
        out.print(table_of(cost, path.name))
        out.print()
    if against:
        out.print(comparison_of(costs[graph], costs[against]))
