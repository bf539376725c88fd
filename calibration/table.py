"""The calibration as tables for a person: what is close to half's limits, and what nearly fell the other way."""

from __future__ import annotations

from collections import defaultdict

from rich.table import Table

from upfusion.runtime.calibration_file import Calibration, SiteRange

LARGEST_HALF = 65504.0
NEAR = 0.125
"""Share of half's range from which a value is shown as near the limit."""

MEANINGS = {"order": "channel order", "keep": "attention mask", "permutation": "text order"}


def range_table(calibration: Calibration) -> Table:
    """Return the largest values of each stage beside what half can hold."""
    table = Table("stage", "largest value", "99.99 %", "of half's range", "where", title="values of the maps")
    for stage, sites in _by_stage(calibration).items():
        where, top = max(sites.items(), key=lambda item: item[1].largest)
        usual = max(site.p9999 for site in sites.values())
        share = top.largest / LARGEST_HALF
        colour = "red" if share >= 1 else "yellow" if share >= NEAR else ""
        shown = f"[{colour}]{share:.2%}[/]" if colour else f"{share:.2%}"
        table.add_row(stage, f"{top.largest:.4g}", f"{usual:.4g}", shown, where.removeprefix(f"{stage}."))
    return table


def sum_table(calibration: Calibration) -> Table:
    """Return the sums of squares behind the norms of queries and keys, at the target size."""
    height, width = calibration.target_size
    over = [name for name, total in calibration.sums.items() if total.at_target > LARGEST_HALF]
    table = Table("sums of squares", "channels' largest", f"at {height}x{width}", title="what half could not add up")
    worst = sorted(calibration.sums.items(), key=lambda item: -item[1].at_target)[:5]
    for name, total in worst:
        colour = "red" if total.at_target > LARGEST_HALF else ""
        shown = f"[{colour}]{total.at_target:.3g}[/]" if colour else f"{total.at_target:.3g}"
        table.add_row(name, f"{total.largest:.3g}", shown)
    table.caption = (
        f"{len(over)} of {len(calibration.sums)} pass {LARGEST_HALF:,.0f} at {height}x{width}; "
        "the FP16 graph keeps all of them in FP32"
    )
    return table


def decision_table(calibration: Calibration) -> Table:
    """Return how close each decision was, and how often it fell the same way."""
    table = Table(
        "decision", "what", "smallest margin", "1st percentile", "same on all pairs", "mean agreement",
        title="decisions",
    )  # fmt: skip
    for name, record in calibration.decisions.items():
        site, kind = name.split(".")
        if kind == "keep":
            steady = "-"
        else:
            steady = f"{sum(share == 1 for share in record.agreement)} of {len(record.agreement)} places"
        mean = sum(record.agreement) / len(record.agreement)
        table.add_row(
            site, MEANINGS[kind], f"{record.smallest_margin:.1e}", f"{record.p1_margin:.1e}", steady, f"{mean:.1%}"
        )
    table.caption = "a margin below the arithmetic's error is a coin toss; --ranking frozen takes the majority"
    return table


def _by_stage(calibration: Calibration) -> dict[str, dict[str, SiteRange]]:
    """Return the ranges grouped by the part of the network that their module path starts with."""
    stages: dict[str, dict[str, SiteRange]] = defaultdict(dict)
    for path, site in calibration.ranges.items():
        parts = path.split(".")
        stage = ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]
        stages[stage][path] = site
    return stages
