"""A picture of a benchmark: every call, where its time goes, and throughput by load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import upfusion
from upfusion.bench.run import BenchResult
from upfusion.runtime.errors import MissingDependencyError
from upfusion.runtime.files import replacing

INCHES_PER_ARTIFACT = 0.6
WIDTH_INCHES = 12.0
PART_COLORS = ("0.2", "0.45", "0.65", "0.8", "0.9")
"""Grays, dark to light in the order of the parts: prepare, copy in, compute or run, copy out, finish."""


def check_matplotlib() -> None:
    """Do nothing if plots can be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "plots need matplotlib", "pip install 'upfusion[bench]', or go without: --no-plot"
        ) from error


def write_plot(result: BenchResult, path: Path) -> None:
    """Write the figure as PNG.

    Left: a point for each call, a line at the median. Middle: the medians of the parts, end to end. Right: pairs per
    second of each load, a whisker from the lowest to the highest window.
    """
    from matplotlib.figure import Figure

    bars = max(len(result.artifacts), sum(len(artifact.throughput) for artifact in result.artifacts) // 2)
    figure = Figure(figsize=(WIDTH_INCHES, 2.0 + INCHES_PER_ARTIFACT * bars), layout="constrained")
    calls, parts, flow = figure.subplots(1, 3)
    _draw_calls(calls, result)
    _draw_parts(parts, result)
    _draw_throughput(flow, result)
    for panel in (calls, parts, flow):
        panel.invert_yaxis()
        panel.set_xlim(left=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    device = result.gpu["name"] if result.gpu else result.machine["cpu"]
    figure.suptitle(f"{device}, {result.date[:10]}", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software": f"upfusion {upfusion.__version__}"})


def _draw_calls(panel: Any, result: BenchResult) -> None:
    """Draw the times of all calls."""
    for place, artifact in enumerate(result.artifacts):
        panel.plot(artifact.times_ms, [place] * len(artifact.times_ms), "|", color=f"C{place}", alpha=0.6)
        panel.plot(artifact.latency.median, place, "o", color=f"C{place}", markersize=5)
        if artifact.bare:
            panel.plot(artifact.bare.median, place + 0.25, "^", color="0.4", markersize=4)
    if any(artifact.bare for artifact in result.artifacts):
        panel.plot([], [], "^", color="0.4", markersize=4, label="bare InferenceSession.run")
        panel.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    names = [f"{artifact.name}\n{artifact.size[0]}x{artifact.size[1]}" for artifact in result.artifacts]
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(-0.5, len(names) - 0.5)
    panel.set_xlabel("ms from uint8 to uint8, each call", fontsize=8)


def _draw_parts(panel: Any, result: BenchResult) -> None:
    """Draw the parts of a call, one behind the other."""
    named = list(dict.fromkeys(part for artifact in result.artifacts for part in artifact.parts_ms))
    # Not the cycle's colours, which stand for artifacts on both sides.
    colors = {part: PART_COLORS[number % len(PART_COLORS)] for number, part in enumerate(named)}
    for place, artifact in enumerate(result.artifacts):
        left = 0.0
        for part, value in artifact.parts_ms.items():
            panel.barh(place, value, left=left, height=0.6, color=colors[part])
            left += value
    for part in named:
        panel.barh(0, 0, color=colors[part], label=part.replace("_", " "))
    panel.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(named))
    panel.set_yticks(range(len(result.artifacts)), [""] * len(result.artifacts))
    panel.set_ylim(-0.5, len(result.artifacts) - 0.5)
    panel.set_xlabel("ms, median of each part", fontsize=8)


def _draw_throughput(panel: Any, result: BenchResult) -> None:
    """Draw the pairs per second of every load."""
    labels: list[str] = []
    for place, artifact in enumerate(result.artifacts):
        for one in artifact.throughput:
            row = len(labels)
            panel.barh(row, one.pairs_per_second, height=0.6, color=f"C{place}")
            panel.hlines(row, min(one.windows), max(one.windows), color="0.3", linewidth=1.2)
            labels.append(f"{artifact.name}\nbatch {one.batch}, contexts {one.contexts}")
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(-0.5, len(labels) - 0.5)
    panel.set_xlabel("pairs per second", fontsize=8)
