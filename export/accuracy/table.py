"""The accuracy report as tables for a person."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

from rich.table import Table

from upfusion.export.accuracy.flips import Flips
from upfusion.export.accuracy.levels import Levels
from upfusion.export.accuracy.measure import AccuracyReport, PairAccuracy

SHOWN = 10


def image_table(report: AccuracyReport) -> Table:
    """Return numerics and both together for the worst pairs."""
    table = Table(
        "pair", "numerics dB", "max", "SSIM", ">2 levels", "shift", "together dB", "max", "SSIM",
        "moved", "moved by TF32", title=f"{report.artifact} against {report.reference} in FP32",
    )  # fmt: skip
    for pair in sorted(report.pairs, key=_together_db)[:SHOWN]:
        own, tf32 = pair.numerics, pair.tf32
        table.add_row(
            pair.name, _decibels(own), str(own.max_levels), f"{own.ssim:.5f}", f"{own.share_over_two:.3%}",
            f"{own.shift_levels:+.3f}", _decibels(pair.together), str(pair.together.max_levels),
            f"{pair.together.ssim:.5f}", str(_moved(pair.decisions.values())),
            "-" if tf32 is None else str(_moved(tf32.values())),
        )  # fmt: skip
    table.caption = (
        "numerics: the FP32 network computes with the graph's decisions; together: with its own; "
        f"levels of 8 bits; the worst {min(SHOWN, len(report.pairs))} of {len(report.pairs)} pairs"
    )
    return table


def decision_table(report: AccuracyReport) -> Table:
    """Return the flips of every site over all pairs, beside those that TF32 makes in the reference."""
    table = Table(
        "decision", "moved", "at ties", "of", "first place", "median margin", "largest margin", "TF32 moved",
        "TF32 at ties", "TF32 largest", title="decisions",
    )  # fmt: skip
    for name in report.pairs[0].decisions:
        ours = [pair.decisions[name] for pair in report.pairs]
        theirs = [pair.tf32[name] for pair in report.pairs if pair.tf32 is not None]
        margins = list(_margins(ours))
        places = [flip.first_place for flip in ours if flip.first_place >= 0]
        table.add_row(
            name, str(_moved(ours)), str(_tied(ours)), str(sum(flip.of for flip in ours)),
            str(min(places)) if places else "-",
            f"{statistics.median(margins):.1e}" if margins else "-", f"{max(margins):.1e}" if margins else "-",
            str(_moved(theirs)) if theirs else "-", str(_tied(theirs)) if theirs else "-",
            f"{max(_margins(theirs), default=0):.1e}" if theirs else "-",
        )  # fmt: skip
    table.caption = (
        "each site judged after the graph's own decisions before it; at ties FP32 itself chose between equal values"
    )
    return table


def range_line(report: AccuracyReport) -> str:
    """Return one sentence on values that half could not hold."""
    if not report.edges:
        return "no half edge to look at: the artifact has none, or an engine hides them"
    largest = report.extremes[0]
    if report.saturated:
        names = ", ".join(extreme.site for extreme in report.saturated[:SHOWN])
        return f"{len(report.saturated)} of {report.edges} half edges overflow: {names}"
    return f"no overflow on {report.edges} half edges; the largest value is {largest.largest:.4g} ({largest.site})"


def _together_db(pair: PairAccuracy) -> float:
    return float("inf") if pair.together.psnr_db is None else pair.together.psnr_db


def _decibels(found: Levels) -> str:
    return "equal" if found.psnr_db is None else f"{found.psnr_db:.2f}"


def _moved(found: Iterable[Flips]) -> int:
    return sum(flip.moved for flip in found)


def _tied(found: Iterable[Flips]) -> int:
    return sum(flip.tied for flip in found)


def _margins(found: list[Flips]) -> Iterator[float]:
    return (margin for flip in found for margin in flip.margins)
