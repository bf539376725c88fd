"""Requests to end: nothing half-written stays, and what is not ours to decide is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for another process")

# Short sleeps: Python sees a signal that comes just before a long one only after it.
WRITES = """
import sys, time
def wait():
    for _ in range(600):
        time.sleep(0.1)
from upfusion.cli.stopping import stop_as_by_ctrl_c
from upfusion.runtime.files import replacing
stop_as_by_ctrl_c()
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    wait()
"""


def started(code: str, *arguments: object, **settings: object) -> subprocess.Popen[str]:
    """A process that has printed a line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)  # type: ignore[call-overload]
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_nothing_half_written_stays(tmp_path: Path, name: str) -> None:
    target = tmp_path / "fusion.engine"
    target.write_text("old")
    process = started(WRITES, target)
    process.send_signal(getattr(signal, name))
    stderr = process.communicate(timeout=60)[1]
    assert "KeyboardInterrupt" in stderr
    assert process.returncode != 0
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("fusion.engine", "old")]


def test_a_second_request_does_not_disturb_the_cleaning_up(tmp_path: Path) -> None:
    code = WRITES.replace(
        '    print("ready", flush=True)\n    wait()',
        '    try:\n        print("ready", flush=True)\n        wait()\n'
        '    finally:\n        print("cleaning", flush=True)\n        time.sleep(0.5)',
    )
    process = started(code, tmp_path / "x.onnx")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert not list(tmp_path.iterdir())


def test_what_is_ignored_stays_ignored() -> None:
    code = """
import signal
from upfusion.cli.stopping import stop_as_by_ctrl_c
signal.signal(signal.SIGHUP, signal.SIG_IGN)
stop_as_by_ctrl_c()
print("ready", flush=True)
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
assert callable(signal.getsignal(signal.SIGTERM))
"""
    process = started(code)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


def test_a_forked_process_ends_by_the_signal_itself() -> None:
    """As a pool's workers do, without a traceback."""
    code = """
import os, signal, time
from upfusion.cli.stopping import stop_as_by_ctrl_c
stop_as_by_ctrl_c()
print("ready", flush=True)
awake, tell = os.pipe()
child = os.fork()
if child == 0:
    os.write(tell, b"x")
    for _ in range(600):
        time.sleep(0.1)
    os._exit(0)
os.read(awake, 1)  # a signal between the fork and Python's own start in the child would be lost
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
"""
    process = started(code)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
