"""The record, the tables and the picture say what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from upfusion.bench.plot import write_plot
from upfusion.bench.report import latency_table, markdown_of, parts_table, record_of, throughput_table, write_record
from upfusion.bench.roofline import Roofline
from upfusion.bench.run import BenchOptions, BenchResult, bench


@pytest.fixture
def result(artifact: Any) -> BenchResult:
    options = BenchOptions(runs=4, warm_up=0, parts_runs=1, batches=(1, 2), contexts=(1, 2), seconds=0.0, windows=2)
    found = bench(
        [artifact("plain.onnx", batch="n"), artifact("ours.engine", timed=True, device="Fake 4090 (RT 11)")],
        None,
        options,
        command="upfusion bench plain.onnx ours.engine",
    )
    roofline = Roofline(gpu="RTX 4090", floor_ms=4.0, measured_ms=8.0)
    return dataclasses.replace(
        found, artifacts=(found.artifacts[0], dataclasses.replace(found.artifacts[1], roofline=roofline))
    )


def test_record(result: BenchResult, tmp_path: Path) -> None:
    write_record(record_of(result), tmp_path / "bench.json")
    record = json.loads((tmp_path / "bench.json").read_text())
    plain, ours = record["artifacts"]
    assert plain["latency"]["median"] == pytest.approx(result.artifacts[0].latency.median, abs=1e-6)
    assert len(plain["times_ms"]) == 4
    assert ours["roofline"]["measured_over_floor"] == 2.0
    assert ours["bare"] is None
    assert [(one["batch"], one["contexts"]) for one in plain["throughput"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert record["command"] == "upfusion bench plain.onnx ours.engine"
    assert record["options"]["runs"] == 4
    assert record["versions"]["numpy"]
    assert "batch 2: ours.engine was exported for batch 1" in ours["not_measured"]


def named(table: tuple[list[str], list[list[str]]]) -> list[dict[str, str]]:
    head, rows = table
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_tables(result: BenchResult) -> None:
    plain, ours = named(latency_table(result))
    assert list(plain) == ["artifact", "size", "median", "p90", "p99", "max", "bare run", "ours", "× floor"]
    assert plain["ours"].endswith("%)")
    assert (ours["× floor"], ours["bare run"], ours["ours"]) == ("2", "-", "-")
    plain, ours = named(parts_table(result))
    assert list(plain)[2:] == ["prepare", "run", "copy in", "compute", "copy out", "finish"]
    assert (plain["compute"], plain["run"] != "-") == ("-", True)
    assert (ours["copy in"], ours["compute"], ours["copy out"]) == ("1", "8", "2")
    assert len(throughput_table(result)[1]) == 6


def test_markdown(result: BenchResult) -> None:
    text = markdown_of(result)
    assert "`upfusion bench plain.onnx ours.engine`" in text
    assert "exported for batch 1" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    assert text.count("| --- |") == 3


def test_plot(result: BenchResult, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("matplotlib")
    write_plot(result, tmp_path / "bench.png")
    image = cv2.imread(str(tmp_path / "bench.png"))
    assert image.shape[1] > 1000
    assert image.std() > 5
