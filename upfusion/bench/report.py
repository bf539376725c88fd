"""A benchmark as JSON, and as a Markdown table for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upfusion.bench.run import ArtifactResult, BenchResult
from upfusion.runtime.files import replacing


def record_of(result: BenchResult) -> dict[str, Any]:
    """Return a result as plain values for JSON."""
    record: dict[str, Any] = _rounded(dataclasses.asdict(result))
    for artifact, own in zip(result.artifacts, record["artifacts"], strict=True):
        if artifact.roofline:
            own["roofline"]["measured_over_floor"] = round(artifact.roofline.measured_over_floor, 3)
    return record


Table = tuple[list[str], list[list[str]]]
"""Head and rows."""


def latency_table(result: BenchResult) -> Table:
    """Return the latency of each artifact, and what stands beside it."""
    rows = [
        [
            artifact.name,
            "x".join(map(str, artifact.size)),
            *map(_number, (latency.median, latency.p90, latency.p99, latency.maximum)),
            _number(artifact.bare.median if artifact.bare else None),
            _ours(artifact),
            _number(artifact.roofline.measured_over_floor if artifact.roofline else None),
        ]
        for artifact in result.artifacts
        for latency in (artifact.latency,)
    ]
    return ["artifact", "size", "median", "p90", "p99", "max", "bare run", "ours", "× floor"], rows


def parts_table(result: BenchResult) -> Table:
    """Return the medians of the parts of a call, and where it runs."""
    parts = list(dict.fromkeys(part for artifact in result.artifacts for part in artifact.parts_ms))
    parts.sort(key=lambda part: part == "finish")  # an ONNX file's come first, without the copies
    rows = [
        [artifact.name, artifact.device, *(_number(artifact.parts_ms.get(part)) for part in parts)]
        for artifact in result.artifacts
    ]
    return ["artifact", "device", *(part.replace("_", " ") for part in parts)], rows


def throughput_table(result: BenchResult) -> Table:
    """Return the head and the rows of all loads."""
    rows = [
        [
            artifact.name,
            str(one.batch),
            str(one.contexts),
            _number(one.pairs_per_second),
            f"{_number(min(one.windows))} .. {_number(max(one.windows))}",
            _number(one.joules_per_pair),
        ]
        for artifact in result.artifacts
        for one in artifact.throughput
    ]
    return ["artifact", "batch", "contexts", "pairs/s", "windows", "J/pair"], rows


def markdown_of(result: BenchResult) -> str:
    """Return the tables with the circumstances."""
    machine, options = result.machine, result.options
    gpu = f"{result.gpu['name']}, driver {result.gpu['driver']}" if result.gpu else f"no GPU figures: {result.gpu_note}"
    lines = [
        "# Benchmark",
        "",
        f"{result.date}, `{result.command}`",
        "",
        f"* {machine['cpu']}, {machine['usable_cores']} cores, load {machine['load_average']}; {gpu}",
        f"* {', '.join(f'{name} {version}' for name, version in result.versions.items())}",
        f"* images: {result.images}",
        f"* latency: {result.latency_means}; {options.runs} rounds after {options.warm_up} thrown away, all artifacts "
        "in turn in each round; milliseconds",
        "* bare run: `InferenceSession.run` on prepared inputs in the same rounds; ours: what a call takes beyond it "
        "(median of the rounds' differences)",
        "",
        *_markdown(*latency_table(result)),
        "",
        "Where the time of a call goes, in runs of their own"
        " (copies and compute: the device's clock, without a CUDA graph):",
        "",
        *_markdown(*parts_table(result)),
        "",
        f"Throughput: median of {options.windows} windows of {options.seconds:g} s, as many threads as contexts.",
        "",
        *_markdown(*throughput_table(result)),
        "",
        "First call, second call and steady state: "
        + "; ".join(
            f"{one.name} loaded in {one.load_seconds:.2f} s, then {_number(one.first_call_ms)}, "
            f"{_number(one.second_call_ms)} and {_number(one.latency.median)} ms"
            for one in result.artifacts
        )
        + ".",
    ]
    missing = [f"* {artifact.name}: {sentence}" for artifact in result.artifacts for sentence in artifact.not_measured]
    if missing:
        lines += ["", "Not measured:", "", *missing]
    return "\n".join(lines) + "\n"


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as JSON, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_markdown(result: BenchResult, path: Path) -> None:
    """Write the tables, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(markdown_of(result), encoding="utf-8")


def _ours(artifact: ArtifactResult) -> str:
    """Return what the runtime adds to a bare run, in milliseconds and as a share."""
    if artifact.bare is None or artifact.overhead_ms is None:
        return "-"
    return f"{artifact.overhead_ms:+.2f} ({artifact.overhead_ms / artifact.bare.median:+.1%})"


def _number(value: float | None) -> str:
    """Return a number with three significant digits or, above 100, none behind the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column is text."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _rounded(value: Any) -> Any:
    """Return plain values with floats rounded to six places: nanoseconds of milliseconds."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _rounded(dataclasses.asdict(value))
    return value
