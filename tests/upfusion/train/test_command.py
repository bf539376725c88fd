"""``upfusion train`` as it is typed: killed and resumed, two processes, and its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from upfusion.checkpoint import load_checkpoint

# One thread, so that sums are taken in one order whatever else the machine does.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
COMMAND = (sys.executable, "-m", "upfusion", "train")
STEPS = 40
"""Of the run that is killed: a fast machine takes ten before anybody has looked."""


def options(pairs: Path, output: Path, *more: str) -> list[str]:
    fixed = "--preset tiny --stand-in-text --device cpu --crop 48 --batch 1 --save-minutes 0"
    return ["--data", str(pairs), "-o", str(output), *fixed.split(), *more]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "model.safetensors").model.state_dict()


@pytest.fixture
def killed_and_resumed(pairs, tmp_path):
    """A run that was killed without warning after its third step or later, and then resumed to its end."""
    output = tmp_path / "killed"
    command = [*COMMAND, *options(pairs, output, "--recipe", "shipped", "--steps", str(STEPS))]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    step = 0
    while step < 3 and time.monotonic() < deadline and process.poll() is None:
        if (output / "state.pt").exists():
            step = torch.load(output / "state.pt", weights_only=True)["step"]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 3 <= step < STEPS
    done = run(*command, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    return output, json.loads(done.stdout)


def test_kill_9_and_resume_equals_uninterrupted(pairs, tmp_path, killed_and_resumed):
    output, record = killed_and_resumed
    assert (record["steps"], record["finished"]) == (STEPS, True)
    whole = run(*COMMAND, *options(pairs, tmp_path / "whole", "--recipe", "shipped", "--steps", str(STEPS)))
    assert whole.returncode == 0, whole.stderr
    assert "next: upfusion export" in whole.stderr
    one, two = state(output), state(tmp_path / "whole")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_equal_one_with_twice_the_batch(pairs, tmp_path):
    length = ("--recipe", "paper", "--steps", "3")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = run(*torchrun, "-m", "upfusion.train", *options(pairs, tmp_path / "two", *length))
    assert two.returncode == 0, two.stderr
    one = run(*COMMAND, *options(pairs, tmp_path / "one", *length), "--batch", "2")
    assert one.returncode == 0, one.stderr
    start = run(
        *COMMAND, *options(pairs, tmp_path / "start", "--recipe", "paper", "--steps", "1"), "--learning-rate", "1e-30"
    )
    assert start.returncode == 0, start.stderr
    first, second, fresh = (state(tmp_path / name) for name in ("two", "one", "start"))
    moved = torch.cat([(second[name] - fresh[name]).flatten() for name in fresh])
    apart = torch.cat([(second[name] - first[name]).flatten() for name in fresh])
    # Adam's first steps are the learning rate times the gradient's sign, so values whose gradient is all rounding may
    # go either way; on the whole the two runs take the same steps.
    assert apart.abs().sum() < 0.01 * moved.abs().sum()
    assert moved.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "nowhere", "-o", "{out}", "--stand-in-text"], "nowhere: no such folder"),
        (["--data", "{pairs}", "-o", "{out}"], "--stand-in-text takes a fixed random vector"),
        (["--data", "{pairs}@much", "-o", "{out}", "--stand-in-text"], "'much' is no weight"),
        (["--data", "{pairs}", "-o", "{out}", "--stand-in-text", "--hold-out", "5"], "cannot be held out"),
        (["--data", "{pairs}", "-o", "{out}", "--stand-in-text", "--preset", "huge"], "no preset is named 'huge'"),
        (["--data", "{pairs}", "-o", "{out}", "--stand-in-text", "--device", "abacus"], "no device is named 'abacus'"),
        (["--data", "{pairs}", "-o", "{out}", "--stand-in-text", "--resume"], "holds no run to resume"),
        (["--data", "{pairs}", "-o", "{out}", "--stand-in-text", "--without", "luck"], "luck"),
    ],
)
def test_errors_say_what_to_do(pairs, tmp_path, arguments, sentence, capsys, monkeypatch):
    from upfusion.cli import app

    filled = [argument.format(pairs=pairs, out=tmp_path / "run") for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["upfusion", "train", *filled])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
