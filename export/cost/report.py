"""One graph's cost, or two side by side, as a table for people and as plain values for scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from upfusion.export.cost.model import BlockCost, GraphCost

COLUMNS: tuple[tuple[str, Callable[[BlockCost], str]], ...] = (
    ("GFLOP", lambda cost: f"{cost.flops / 1e9:,.1f}"),
    ("MB unfused", lambda cost: f"{cost.bytes_unfused / 1e6:,.0f}"),
    ("MB fused", lambda cost: f"{cost.bytes_fused / 1e6:,.0f}"),
    ("weights MB", lambda cost: f"{cost.weight_bytes / 1e6:,.1f}"),
    ("nodes", lambda cost: f"{cost.nodes:,}"),
    ("kernels", lambda cost: f"{cost.kernels:,}"),
    ("roofline ms", lambda cost: "" if cost.roofline_ms is None else f"{cost.roofline_ms:.2f}"),
)


def table_of(cost: GraphCost, title: str) -> RenderableType:
    """Return one graph's blocks and node kinds."""
    height, width = cost.size
    table = Table(
        "block",
        *(name for name, _ in COLUMNS),
        title=f"{title}: {cost.precision}, {height}x{width}" + (f", {cost.gpu}" if cost.gpu else ""),
        box=None,
        padding=(0, 2),
    )
    for name, block in cost.blocks.items():
        table.add_row(name, *(show(block) for _, show in COLUMNS))
    table.add_section()
    table.add_row("all", *(show(cost.total) for _, show in COLUMNS), style="bold")
    kinds = ", ".join(f"{count} {kind}" for kind, count in cost.node_kinds.items())
    return Group(table, f"peak of live activations {cost.peak_bytes / 1e6:,.0f} MB", f"nodes: {kinds}")


def comparison_of(ours: GraphCost, theirs: GraphCost) -> RenderableType:
    """Return the totals of two graphs with their ratio."""
    table = Table("", "this", "against", "ratio", box=None, padding=(0, 2), title="side by side")
    for name, this, other, unit in _totals(ours, theirs):
        table.add_row(name, f"{this:,.1f}{unit}", f"{other:,.1f}{unit}", f"{this / other:.0%}" if other else "")
    return table


def _totals(ours: GraphCost, theirs: GraphCost) -> list[tuple[str, float, float, str]]:
    a, b = ours.total, theirs.total
    rows = [
        ("nodes", a.nodes, b.nodes, ""),
        ("kernels", a.kernels, b.kernels, ""),
        ("operations", a.flops / 1e9, b.flops / 1e9, " GFLOP"),
        ("bytes without fusion", a.bytes_unfused / 1e6, b.bytes_unfused / 1e6, " MB"),
        ("bytes with fusion", a.bytes_fused / 1e6, b.bytes_fused / 1e6, " MB"),
        ("weights", a.weight_bytes / 1e6, b.weight_bytes / 1e6, " MB"),
        ("peak of live activations", ours.peak_bytes / 1e6, theirs.peak_bytes / 1e6, " MB"),
    ]
    if a.roofline_ms is not None and b.roofline_ms is not None:
        rows.append(("roofline", a.roofline_ms, b.roofline_ms, " ms"))
    return rows


def record_of(cost: GraphCost) -> dict[str, Any]:
    """Return the cost as JSON-ready values."""
    return dataclasses.asdict(cost)
