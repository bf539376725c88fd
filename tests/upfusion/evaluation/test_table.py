"""Means, the best method, the paper's row, and the files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from upfusion.evaluation.paper import PAPER_METHOD, PAPER_VALUES
from upfusion.evaluation.table import MethodInfo, Table, table_from, write_tables

NAMES = ("Q_P", "SSIM", "MSE")


def table(dataset: str = "MSRS", **changed: float) -> Table:
    values = {
        "average": {"1": {"Q_P": 0.2, "SSIM": 0.5, "MSE": 10.0}, "2": {"Q_P": 0.4, "SSIM": 0.1, "MSE": 30.0}},
        "fusion": {"1": {"Q_P": 0.5, "SSIM": 0.4, "MSE": 40.0}, "2": {"Q_P": 0.7, "SSIM": 0.1, "MSE": 60.0}},
    }
    values["fusion"]["2"] |= changed
    methods = {name: MethodInfo(kind="baseline", identity=name) for name in values}
    return table_from(dataset, "test", NAMES, methods, values)


def test_means_and_deviations() -> None:
    found = table()
    assert found.mean("average", "Q_P") == pytest.approx(0.3)
    assert found.deviation("average", "Q_P") == pytest.approx(math.sqrt(0.02))  # of a sample of two
    assert found.pairs == ["1", "2"]


def test_best_follows_the_metric_s_direction() -> None:
    assert [table().best(name) for name in NAMES] == ["fusion", "average", "average"]


def test_a_value_that_is_not_finite_cannot_enter_a_mean() -> None:
    with pytest.raises(AssertionError, match="fusion"):
        table(SSIM=math.nan)


def test_the_paper_s_numbers_are_marked_as_its_own() -> None:
    text = table().to_markdown()
    printed = PAPER_VALUES["MSRS"][1]
    assert f"| *{PAPER_METHOD}* | *{printed['Q_P']:.4f}* | *{printed['SSIM']:.4f}* |  |" in text
    assert "not measured here" in text
    assert "| fusion | **0.6000** | 0.2500 | 50.0000 |" in text
    assert "**0.3000**" in text  # average: SSIM
    assert PAPER_METHOD not in table("my own").to_markdown()


def test_ssim_comes_with_its_note() -> None:
    assert any("single grey levels" in note for note in table().notes())
    found = table()
    without = table_from("MSRS", "test", ["Q_P"], found.methods, found.values)
    assert not any("SSIM" in note for note in without.notes())


def test_files_hold_every_value_and_say_where_it_comes_from(tmp_path: Path) -> None:
    tables = [table("MSRS"), table("other")]
    paths = write_tables(tables, tmp_path)
    assert [path.name for path in paths] == ["pairs.csv", "table.md", "table.json"]
    rows = list(csv.DictReader((tmp_path / "pairs.csv").open()))
    assert len(rows) == 8
    assert {row["dataset"] for row in rows} == {"MSRS", "other"}
    read = {(row["dataset"], row["method"], row["pair"]): float(row["Q_P"]) for row in rows}
    assert read["other", "fusion", "2"] == 0.7
    first, second = json.loads((tmp_path / "table.json").read_text())["tables"]
    assert first["methods"]["fusion"]["mean"]["Q_P"] == pytest.approx(0.6)
    assert first["methods"]["fusion"]["identity"] == "fusion"
    assert first["paper"]["printed"] == {name: PAPER_VALUES["MSRS"][1][name] for name in ("Q_P", "SSIM")}
    assert "Table 1" in first["paper"]["source"]
    assert second["paper"] is None
    assert first["tool"].startswith("upfusion ")
