"""Steps end when they should, take nobody along, and all leave a line in the record."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.steps import CANNOT_RUN, Step, run_step, run_steps

pytestmark = pytest.mark.skipif(os.name == "nt", reason="GPU machines of the suite run Linux: process groups")


def step(code: str, limit_s: float = 30, name: str = "a step") -> Step:
    """``{into}`` is the first argument of the code."""
    return Step(
        name=name, command=(sys.executable, "-c", f"import sys, json, time, os\n{code}", "{into}"), limit_s=limit_s
    )


WRITES = "json.dump({'x': 1}, open(sys.argv[1], 'w'))\n"


def test_figures_come_back() -> None:
    outcome = run_step(step(WRITES), 30)
    assert (outcome["status"], outcome["figures"]) == ("done", {"x": 1})
    assert 0 < outcome["seconds"] < 30


def test_a_step_that_cannot_run_says_why() -> None:
    code = f"json.dump({{'why': 'TensorRT is not installed'}}, open(sys.argv[1], 'w')); sys.exit({CANNOT_RUN})"
    outcome = run_step(step(code), 30)
    assert (outcome["status"], outcome["why"]) == ("cannot run", "TensorRT is not installed")
    assert "figures" not in outcome


@pytest.mark.parametrize(
    ("code", "why", "said"),
    [
        ("raise ValueError('no such kernel')", "exit code 1", "ValueError: no such kernel"),
        ("os.abort()", "exit code -6", ""),
        ("print('did nothing')", "exit code 0", "did nothing"),
        (f"sys.exit({CANNOT_RUN})", f"exit code {CANNOT_RUN}", ""),
    ],
)
def test_a_step_that_fails_keeps_its_last_words(code: str, why: str, said: str) -> None:
    outcome = run_step(step(code), 30)
    assert (outcome["status"], outcome["why"]) == ("failed", why)
    assert "".join(outcome["said"][-1:]) == said


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_step_that_hangs_ends_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "print('waiting', flush=True)\n"
        "time.sleep(300)"
    )
    start = time.monotonic()
    outcome = run_step(step(code), 3)
    assert (outcome["status"], outcome["said"]) == ("timed out", ["waiting"])
    assert time.monotonic() - start < 20
    deadline = time.monotonic() + 10
    while alive(int(note.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(note.read_text()))


def test_the_record_grows_with_every_step_and_the_time_is_kept(tmp_path: Path) -> None:
    path, seen = tmp_path / "record.json", []

    def say(line: str) -> None:
        if path.is_file():
            seen.append(len(json.loads(path.read_text())["steps"]))

    steps = [step(WRITES, name="one"), step("time.sleep(60)", 60, name="two"), step(WRITES, name="three")]
    record: dict[str, Any] = run_steps(steps, {"date": "today"}, path, budget_s=7, say=say)
    assert [one["status"] for one in record["steps"]] == ["done", "timed out", "not run"]
    assert "the 7 s were over" in record["steps"][2]["why"]
    assert json.loads(path.read_text()) == json.loads(json.dumps(record))
    assert seen == [1, 1, 2]
    assert record["steps"][0]["name"] == "one"
    assert record["steps"][0]["command"].startswith(sys.executable)
