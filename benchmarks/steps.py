"""A row of steps, each in a process of its own with a time limit, and one record that grows with every step.

A step that hangs is killed with everything it started, one that crashes takes nobody along, and whatever happened
before the time was over is in the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upfusion.bench.report import write_record

CANNOT_RUN = 3
"""Exit code of a step that says why it cannot run here."""
LEAST_S = 5.0
"""With less time left than this no step is started."""
LINES_KEPT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to run."""

    name: str
    command: tuple[str, ...]
    """What to start; ``{into}`` becomes the file that the step writes its figures to, as a JSON object."""
    limit_s: float


def run_steps(
    steps: Sequence[Step],
    record: dict[str, Any],
    path: Path,
    *,
    budget_s: float,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the steps one after another and return ``record`` with what became of each under ``steps``.

    ``path`` is written anew after each step. When ``budget_s`` is nearly over, the rest is listed as not run.
    """
    record["steps"] = []
    began = time.monotonic()
    for step in steps:
        left = budget_s - (time.monotonic() - began)
        if left < LEAST_S:
            outcome: dict[str, Any] = {"status": "not run", "why": f"the {budget_s:g} s were over"}
        else:
            say(f"{step.name} (at most {min(step.limit_s, left):.0f} s)")
            outcome = run_step(step, min(step.limit_s, left))
        record["steps"].append({"name": step.name, "command": shlex.join(step.command), **outcome})
        record["seconds"] = round(time.monotonic() - began, 1)
        say(f"{step.name}: {outcome['status']}{': ' + outcome['why'] if 'why' in outcome else ''}")
        write_record(record, path)
    return record


def run_step(step: Step, limit_s: float) -> dict[str, Any]:
    """Run one step and return its status (done, cannot run, failed, timed out), seconds, and figures or the reason."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        into = Path(folder) / "figures.json"
        start = time.monotonic()
        process = subprocess.Popen(
            [part.replace("{into}", str(into)) for part in step.command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts can be ended with it
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        outcome: dict[str, Any] = {"seconds": round(time.monotonic() - start, 3), "limit_s": round(limit_s, 1)}
        figures = json.loads(into.read_text()) if into.is_file() and into.stat().st_size else None
        said.seek(0)
        lines = said.read().decode("utf-8", errors="replace").strip().splitlines()
    if code == CANNOT_RUN and figures:
        return {"status": "cannot run", **outcome, "why": figures["why"]}
    if code == 0 and figures is not None:
        return {"status": "done", **outcome, "figures": figures}
    why = "it took longer than its limit" if code is None else f"exit code {code}"
    last = [line for line in lines if line.strip()][-LINES_KEPT:]
    return {"status": "timed out" if code is None else "failed", **outcome, "why": why, "said": last}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step's process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
