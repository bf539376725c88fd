"""The result of an evaluation: values per method and pair, their means, as CSV, JSON and a table to read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import upfusion
from upfusion.evaluation.paper import PAPER_METHOD, PAPER_SOURCE, PAPER_VALUES
from upfusion.metrics import metric_named
from upfusion.runtime.files import replacing

SCHEMA = 1
SSIM_NOTE = (
    "SSIM has the constants of the paper's code (dynamic range 2): on exactly black ground it is decided by single "
    "grey levels. Zeros that become ones, which no eye sees, can take it from 0.80 to 0.20; compare it only between "
    "results whose black ground is equally black, and see SSIM_mean_range255."
)
PAPER_NOTE = (
    f"{PAPER_METHOD}: the numbers printed in {PAPER_SOURCE}, means over its test sets. They were not measured here; "
    "a subset of the pairs, or other crops, has other means."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """Who made the fused images."""

    kind: str
    """``baseline`` or ``artifact``."""
    identity: str
    """What decides whether kept values still hold: the artifact's SHA-256, or the baseline and the tool's version."""
    path: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Metrics of several methods over the pairs of one dataset; every value is finite."""

    dataset: str
    split: str
    names: tuple[str, ...]
    """Metrics, in the order of the columns."""
    methods: dict[str, MethodInfo]
    values: dict[str, dict[str, dict[str, float]]]
    """Method -> pair -> metric -> value."""

    def __post_init__(self) -> None:
        for method, of_pairs in self.values.items():
            for pair, of_names in of_pairs.items():
                bad = [name for name in self.names if not math.isfinite(of_names[name])]
                assert not bad, (method, pair, bad)  # the metrics promise finite values

    @property
    def pairs(self) -> list[str]:
        """Names of the pairs, in the order they were evaluated."""
        return list(next(iter(self.values.values())))

    def column(self, method: str, name: str) -> list[float]:
        """Return a metric of one method over the pairs."""
        return [of_names[name] for of_names in self.values[method].values()]

    def mean(self, method: str, name: str) -> float:
        """Return the mean over the pairs, which is how papers give a dataset's value."""
        return statistics.fmean(self.column(method, name))

    def deviation(self, method: str, name: str) -> float:
        """Return the sample standard deviation over the pairs, 0 for a single one."""
        column = self.column(method, name)
        return statistics.stdev(column) if len(column) > 1 else 0.0

    def best(self, name: str) -> str:
        """Return the method with the best mean of a metric, by the metric's direction."""
        choose = max if metric_named(name).better == "higher" else min
        return choose(self.values, key=lambda method: self.mean(method, name))

    def paper(self) -> dict[str, float]:
        """Return the paper's values for this dataset and these metrics; empty where it has none."""
        _, printed = PAPER_VALUES.get(self.dataset, ("", {}))
        return {name: printed[name] for name in self.names if name in printed}

    def notes(self) -> list[str]:
        """Return what a reader of the numbers has to know."""
        notes = [SSIM_NOTE] if "SSIM" in self.names else []
        return [*notes, PAPER_NOTE] if self.paper() else notes

    def to_dict(self) -> dict[str, Any]:
        """Return means, deviations, definitions, and where everything comes from."""
        table, _ = PAPER_VALUES.get(self.dataset, ("", {}))
        return {
            "schema": SCHEMA,
            "tool": f"upfusion {upfusion.__version__}",
            "dataset": self.dataset,
            "split": self.split,
            "pairs": self.pairs,
            "metrics": {
                name: {"better": metric_named(name).better, "definition": metric_named(name).definition}
                for name in self.names
            },
            "methods": {
                method: {
                    **dataclasses.asdict(info),
                    "mean": {name: self.mean(method, name) for name in self.names},
                    "standard_deviation": {name: self.deviation(method, name) for name in self.names},
                }
                for method, info in self.methods.items()
            },
            "paper": {"method": PAPER_METHOD, "source": f"{PAPER_SOURCE}, {table}", "printed": self.paper()}
            if self.paper()
            else None,
            "notes": self.notes(),
        }

    def to_csv(self) -> str:
        """Return one line per pair and method, with full precision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["dataset", "split", "pair", "method", *self.names])
        for pair in self.pairs:
            for method, of_pairs in self.values.items():
                row = [repr(of_pairs[pair][name]) for name in self.names]
                writer.writerow([self.dataset, self.split, pair, method, *row])
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return the means as a Markdown table, the best measured one bold, with the notes."""
        lines = [f"**{self.dataset}**, {self.split}, {len(self.pairs)} pairs", ""]
        lines += _markdown_row(["method", *(f"{name} {arrow(name)}" for name in self.names)])
        lines += _markdown_row(["---", *("---:" for _ in self.names)])
        for method in self.values:
            cells = [f"{self.mean(method, name):.4f}" for name in self.names]
            marked = [f"**{c}**" if self.best(n) == method else c for c, n in zip(cells, self.names, strict=True)]
            lines += _markdown_row([method, *marked])
        if printed := self.paper():
            cells = [f"*{printed[name]:.4f}*" if name in printed else "" for name in self.names]
            lines += _markdown_row([f"*{PAPER_METHOD}*", *cells])
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes())]) + "\n"


def arrow(name: str) -> str:
    """Return the metric's better direction as a sign."""
    return "↑" if metric_named(name).better == "higher" else "↓"


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write ``pairs.csv``, ``table.md`` and, last, ``table.json``, which says what the others are; return the paths."""
    rows = [table.to_csv() for table in tables]
    widest = {table.names for table in tables}
    assert len(widest) == 1, "all tables of one evaluation have the same metrics"
    texts = {
        "pairs.csv": rows[0] + "".join(text.split("\n", 1)[1] for text in rows[1:]),
        "table.md": "\n".join(table.to_markdown() for table in tables),
        "table.json": json.dumps({"tables": [table.to_dict() for table in tables]}, indent=2, ensure_ascii=False)
        + "\n",
    }
    paths = []
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(folder / name)
    return paths


def table_from(
    dataset: str,
    split: str,
    names: Sequence[str],
    methods: Mapping[str, MethodInfo],
    values: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> Table:
    """Return a table with the columns ``names`` of values that may have more."""
    return Table(
        dataset=dataset,
        split=split,
        names=tuple(names),
        methods=dict(methods),
        values={
            method: {pair: {name: float(of[name]) for name in names} for pair, of in of_pairs.items()}
            for method, of_pairs in values.items()
        },
    )


def _markdown_row(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
