"""What training promises, measured on real runs of ``upfusion train``.

    python -m benchmarks.training [--data ../shared/data/roadscene] [--parts resume processes ranking]

``resume``: a run killed by SIGKILL and resumed has the weights of one that was left alone, to the last bit.
``processes``: two processes with one pair each take the steps of one process with two.
``ranking``: ``--ranking straight-through`` beside the faithful default, same steps, seeds and held-out pairs, with the
loss curves of all runs. Short runs of the smallest network: they tell which learns faster, not which ends better.

Each part replaces its own figures in benchmarks/results/training.json; the curves are drawn beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.circumstances import circumstances
from upfusion.bench.report import write_record
from upfusion.checkpoint import load_checkpoint
from upfusion.runtime.files import replacing

RESULTS = Path(__file__).parent / "results"
RECORD, CURVES = RESULTS / "training.json", RESULTS / "training_curves.png"
COMMAND = [sys.executable, "-m", "upfusion", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
RANKINGS = ("fixed", "straight-through")
SMOOTH_STEPS = 25
"""Steps that one point of a curve is the mean of."""


def options(data: Path, output: Path, more: str) -> list[str]:
    fixed = f"--preset tiny --stand-in-text --device cpu {more}"
    return ["--data", str(data), "-o", str(output), *fixed.split()]


def run(command: list[str]) -> str:
    """Run to the end and return what was printed on stdout."""
    return subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout


def weights(folder: Path) -> dict[str, Tensor]:
    return load_checkpoint(folder / "model.safetensors").model.state_dict()


def digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of all names and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def resume(data: Path, folder: Path) -> dict[str, Any]:
    """Kill a run between two steps or within one, resume it, and compare with a run that was left alone."""
    more = "--recipe shipped --crop 48 --batch 1 --steps 16 --save-minutes 0"  # a state after every step
    command = [*COMMAND, *options(data, folder / "killed", more)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state, step = folder / "killed" / "state.pt", 0
    while step < 6 and process.poll() is None:
        step = torch.load(state, weights_only=True)["step"] if state.exists() else 0
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    killed_after = torch.load(state, weights_only=True)["step"]
    run([*command, "--resume"])
    run([*COMMAND, *options(data, folder / "whole", more)])
    killed, whole = weights(folder / "killed"), weights(folder / "whole")
    return {
        "options": more,
        "exit_code_of_the_killed": code,
        "last_saved_step_of_the_killed": killed_after,
        "sha256_killed_and_resumed": digest(killed),
        "sha256_left_alone": digest(whole),
        "equal": all(torch.equal(killed[name], whole[name]) for name in whole),
    }


def processes(data: Path, folder: Path) -> dict[str, Any]:
    """Compare two processes over gloo with one process of twice the batch."""
    more = "--recipe paper --crop 96 --steps 5"
    run([*TORCHRUN, "-m", "upfusion.train", *options(data, folder / "two", f"{more} --batch 1")])
    run([*COMMAND, *options(data, folder / "one", f"{more} --batch 2")])
    # A step of no length leaves the starting weights.
    run([*COMMAND, *options(data, folder / "start", f"{more} --batch 2 --learning-rate 1e-30")])
    two, one, start = (weights(folder / name) for name in ("two", "one", "start"))
    moved = torch.cat([(one[name] - start[name]).flatten() for name in one]).double()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in one]).double()
    return {
        "options": more,
        "steps": 5,
        "largest_move_of_a_weight": float(moved.abs().max()),
        "largest_difference_of_a_weight": float(apart.abs().max()),
        "sum_of_differences_over_sum_of_moves": float(apart.abs().sum() / moved.abs().sum()),
        "weights_equal_to_the_last_bit": float((apart == 0).double().mean()),
    }


def ranking(data: Path, folder: Path, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Train with fixed and with learned ranking from the same seeds, and draw the curves."""
    more = f"--recipe shipped --crop 64 --batch 2 --steps {steps} --hold-out 8"
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        for kind in RANKINGS:
            output = folder / f"{kind}-{seed}"
            began = time.monotonic()
            told = json.loads(run([*COMMAND, *options(data, output, f"{more} --ranking {kind} --seed {seed} --json")]))
            curves = scalars(output)
            seconds = round(time.monotonic() - began)
            record: dict[str, Any] = {"ranking": kind, "seed": seed, "seconds": seconds}
            record["validation"] = told["metrics"]
            record["loss_of_the_last_quarter"] = float(np.mean(curves["loss"][-steps // 4 :]))
            record["loss_curve"] = [round(value, 4) for value in smoothed(curves["loss"])]
            runs.append(record)
            print(json.dumps({name: value for name, value in record.items() if name != "loss_curve"}), flush=True)
    draw(runs)
    means = {
        kind: {
            name: float(np.mean([one["validation"][name] for one in runs if one["ranking"] == kind]))
            for name in runs[0]["validation"]
        }
        for kind in RANKINGS
    }
    return {"options": more, "steps_per_point": SMOOTH_STEPS, "mean_validation": means, "runs": runs}


def scalars(folder: Path) -> dict[str, list[float]]:
    """Return the values of each scalar that a run has logged, in the order of the steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def smoothed(values: list[float]) -> list[float]:
    """Return the means of successive stretches of :data:`SMOOTH_STEPS`."""
    whole = len(values) // SMOOTH_STEPS * SMOOTH_STEPS
    return [float(mean) for mean in np.asarray(values[:whole]).reshape(-1, SMOOTH_STEPS).mean(1)]


def draw(runs: list[dict[str, Any]]) -> None:
    """Draw the loss of each run over its steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for one in runs:
        curve = one["loss_curve"]
        x = (np.arange(len(curve)) + 0.5) * SMOOTH_STEPS
        style = dict(zip(RANKINGS, ("-", "--"), strict=True))[one["ranking"]]
        axes.plot(x, curve, style, color=f"C{one['seed']}", label=f"{one['ranking']}, seed {one['seed']}")
    axes.set(xlabel="step", ylabel=f"loss, mean of {SMOOTH_STEPS} steps")
    axes.legend()
    with replacing(CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data/roadscene")
    parser.add_argument("--parts", nargs="+", default=["resume", "processes", "ranking"])
    parser.add_argument("--steps", type=int, default=300, help="length of the runs of `ranking`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--keep", type=Path, help="folder for the runs; by default they are deleted")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    parts = {
        "resume": lambda folder: resume(arguments.data, folder),
        "processes": lambda folder: processes(arguments.data, folder),
        "ranking": lambda folder: ranking(arguments.data, folder, arguments.steps, arguments.seeds),
    }
    with tempfile.TemporaryDirectory() as temporary:
        for part in arguments.parts:
            folder = (arguments.keep or Path(temporary)) / part
            folder.mkdir(parents=True)
            figures = parts[part](folder)
            record[part] = {
                **circumstances("training", ["--parts", part]),
                "data": arguments.data.name,
                **figures,
            }
            write_record(record, RECORD)
            print(json.dumps({part: figures}, indent=1), flush=True)


if __name__ == "__main__":
    main()
