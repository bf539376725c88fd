"""One graph's cost, or several side by side, as tables for people and as plain values for scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from upfusion.export.cost.gpus import GPUS
from upfusion.export.cost.model import BlockCost, GraphCost

COLUMNS: tuple[tuple[str, Callable[[BlockCost], str]], ...] = (
    ("GFLOP", lambda cost: f"{cost.flops / 1e9:,.1f}"),
    ("MB unfused", lambda cost: f"{cost.bytes_unfused / 1e6:,.1f}"),
    ("MB fused", lambda cost: f"{cost.bytes_fused / 1e6:,.1f}"),
    ("weights MB", lambda cost: f"{cost.weight_bytes / 1e6:,.1f}"),
    ("nodes", lambda cost: f"{cost.nodes:,}"),
    ("kernels", lambda cost: f"{cost.kernels:,}"),
    ("roofline ms", lambda cost: "" if cost.roofline_ms is None else f"{cost.roofline_ms:.2f}"),
)


COUNTS = ("nodes", "kernels")
TOTALS: tuple[tuple[str, Callable[[GraphCost], float | None]], ...] = (
    ("nodes", lambda cost: cost.total.nodes),
    ("kernels", lambda cost: cost.total.kernels),
    ("GFLOP", lambda cost: cost.total.flops / 1e9),
    ("MB without fusion", lambda cost: cost.total.bytes_unfused / 1e6),
    ("MB with fusion", lambda cost: cost.total.bytes_fused / 1e6),
    ("MB of weights", lambda cost: cost.total.weight_bytes / 1e6),
    ("MB of live activations, peak", lambda cost: cost.peak_bytes / 1e6),
    ("roofline ms", lambda cost: cost.total.roofline_ms),
)


def table_of(cost: GraphCost, title: str) -> RenderableType:
    """Return one graph's blocks and node kinds."""
    height, width = cost.size
    table = Table(
        title=f"{title}: {cost.precision}, {height}x{width}" + (f", {cost.gpu}" if cost.gpu else ""),
        box=None,
        padding=(0, 2),
    )
    table.add_column("block", no_wrap=True)
    columns = [(name, show) for name, show in COLUMNS if show(cost.total)]
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, block in cost.blocks.items():
        table.add_row(name, *(show(block) for _, show in columns))
    table.add_section()
    table.add_row("all", *(show(cost.total) for _, show in columns), style="bold")
    kinds = ", ".join(f"{count} {kind}" for kind, count in cost.node_kinds.items())
    return Group(table, f"peak of live activations {cost.peak_bytes / 1e6:,.1f} MB", f"nodes: {kinds}")


def comparison_of(costs: Mapping[str, GraphCost]) -> RenderableType:
    """Return the totals of several graphs side by side, with the first one's share of each other."""
    names = list(costs)
    first = next(iter(costs.values()))
    others = list(costs.items())[1:]
    table = Table("", box=None, padding=(0, 2), title="side by side")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for name, _ in others:
        table.add_column(f"{names[0]} / {name}", justify="right", overflow="fold")
    for name, measured in TOTALS:
        if any(measured(cost) is None for cost in costs.values()):
            continue
        values = [measured(cost) or 0.0 for cost in costs.values()]
        own = measured(first) or 0.0
        shares = [f"{own / other:.1%}" if (other := measured(cost)) else "" for _, cost in others]
        table.add_row(name, *(f"{value:,.{0 if name in COUNTS else 2}f}" for value in values), *shares)
    return table


def gpus_table(least_ms: Mapping[str, Mapping[str, float]]) -> RenderableType:
    """Return the GPUs' datasheet figures and each graph's least time on them: graph -> GPU -> milliseconds."""
    table = Table("GPU", title="least time by the roofline, ms", box=None, padding=(0, 2))
    for name in ("FP16 TFLOPS", "FP32 TFLOPS", "GB/s", "GiB", *least_ms):
        table.add_column(name, justify="right", overflow="fold")
    for gpu in GPUS:
        figures = (gpu.half_tflops, gpu.single_tflops, gpu.bandwidth_gbps, gpu.memory_gib)
        table.add_row(gpu.name, *(f"{it:,.4g}" for it in figures), *(f"{it[gpu.name]:.2f}" for it in least_ms.values()))
    return table


def record_of(cost: GraphCost) -> dict[str, Any]:
    """Return the cost as JSON-ready values."""
    return dataclasses.asdict(cost)
