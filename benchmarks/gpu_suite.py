"""Everything that only a GPU can show, in one command that fits a slot of ten minutes and writes one JSON.

python -m benchmarks.gpu_suite [--checkpoint FILE] [--work FOLDER] [--budget SECONDS] [-o FILE] [--list]
python -m benchmarks.gpu_suite --prepare [--work FOLDER]     (the graphs alone, on any machine)

Needs an editable install (pip install -e ".[export,bench]") and takes what else is there: ONNX Runtime with CUDA,
TensorRT, TensorRT-RTX. Each step runs in a process of its own with a time limit; one that cannot run says why.
Without a GPU it says so and exits with 2. Most important first, at 480x640:

* graphs: the plain export and ours, FP32 and FP16 (those that lie in the work folder already are taken);
* tests: the tests that need a GPU;
* build: TensorRT and TensorRT-RTX, accepted against the FP32 graph by the gate;
* latency: PyTorch eager and compiled, ONNX Runtime, engines, called in turn in one process;
* cuda-graph: an engine replayed and enqueued;
* throughput: engines over batch and contexts, with energy;
* flips: decisions that move in FP16 on the GPU, in PyTorch, ONNX Runtime and TensorRT;

then graphs, build and latency at the other sizes and at batch 4.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.circumstances import circumstances
from benchmarks.gpu_contenders import KINDS, engine_path, engine_with, graph_path, open_kind, those_that_open
from benchmarks.steps import CANNOT_RUN, Step, run_steps
from upfusion.bench.report import record_of, write_record
from upfusion.bench.run import BenchOptions, bench
from upfusion.cli.sizes import parse_size
from upfusion.export.builder import installed_gpus
from upfusion.runtime.errors import UPFusionError
from upfusion.runtime.files import sha256_of
from upfusion.samples import night_street, write_night_streets
from upfusion.weights import TINY

RESULT = Path(__file__).parent / "results" / "gpu_suite.json"
FIRST = ((480, 640), 1)
REST = (((256, 256), 1), ((1024, 1280), 1), ((480, 640), 4), ((256, 256), 4), ((1024, 1280), 4))
BUILDERS = ("tensorrt", "tensorrt-rtx")
GATE_PAIRS = 2
GATE_PSNR_DB = 45.0
LATENCY = BenchOptions(runs=50, warm_up=5, parts_runs=10, seconds=1.5, windows=2)


class NothingToRunError(Exception):
    """A step has nothing to run with; says why."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a step works on."""

    checkpoint: Path
    work: Path
    size: tuple[int, int]
    batch: int


def graphs(setting: Setting) -> dict[str, Any]:
    """Export what is not there yet: at the first size also with decisions exposed, elsewhere what latency needs."""
    from upfusion.checkpoint import load_checkpoint
    from upfusion.export.onnx_export import ExportOptions, export_onnx
    from upfusion.export.rewrites import DEFAULTS
    from upfusion.runtime.manifest import SizeRange

    wanted = [("ours", "fp16"), ("ours", "fp32"), ("plain", "fp32")]
    if (setting.size, setting.batch) == FIRST:
        wanted += [("ours-ranks", "fp16"), ("ours-ranks", "fp32")]
    sizes = SizeRange(minimum=setting.size, optimum=setting.size, maximum=setting.size)
    made: dict[str, Any] = {}
    for form, precision in wanted:
        path = graph_path(setting.work, form, precision, setting.size, setting.batch)
        if path.is_file():
            made[path.name] = "was there"
            continue
        options = ExportOptions(
            precision=precision,  # type: ignore[arg-type]
            sizes=sizes,
            batch=setting.batch,
            rewrites=() if form == "plain" else DEFAULTS["tensorrt"],
            expose_ranks=form == "ours-ranks",
        )
        made[path.name] = dict(export_onnx(load_checkpoint(setting.checkpoint), path, None, options).parity)
    return made


def tests(setting: Setting) -> dict[str, Any]:
    """Run the tests that need a GPU."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-P", "-m", "pytest", "-m", "gpu", "-q", "-rfs", "--no-header", "tests/runtime"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return {
        "exit_code": done.returncode,
        "summary": lines[-1] if lines else done.stderr[-500:],
        "failed_or_skipped": [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))],
    }


def build(setting: Setting, builder: str) -> dict[str, Any]:
    """Build an FP16 engine and let the gate judge it."""
    graph = _present(graph_path(setting.work, "ours", "fp16", setting.size, setting.batch))
    reference = _present(graph_path(setting.work, "ours", "fp32", setting.size, setting.batch))
    engine = engine_path(setting.work, builder, setting.size, setting.batch)
    options = ["--builder", builder, "--reference", reference, "--psnr", GATE_PSNR_DB, "--json"]
    if builder == "tensorrt-rtx":
        options += ["--target", installed_gpus()[0].target]
    engines = _upfusion("build", graph, "-o", engine, "--accept", *_pairs(setting), *options)["engines"][0]
    return {"build": engines["build"], "acceptance": engines["acceptance"]}


def latency(setting: Setting, only: Sequence[str] = tuple(KINDS)) -> dict[str, Any]:
    """Measure every contender that can be had, in turn in one process."""
    found, first_calls, why = those_that_open(
        only,
        lambda name: open_kind(name, setting.checkpoint, setting.work, setting.size, setting.batch),
        night_street(*setting.size),
    )
    if not found:
        raise NothingToRunError("; ".join(f"{name}: {reason}" for name, reason in why.items()))
    measured = record_of(bench(found, None, LATENCY, size=setting.size))
    return {"not_opened": why, "very_first_calls_ms": first_calls, **measured}


def cuda_graph(setting: Setting) -> dict[str, Any]:
    """Compare replaying an engine's CUDA graph with enqueueing it."""
    engine = _first_engine(setting)
    options = dataclasses.replace(LATENCY, runs=200)
    both = [engine_with(engine, graphs=graphs) for graphs in (True, False)]
    return {"engine": engine.name, **record_of(bench(both, None, options, size=setting.size))}


def throughput(setting: Setting) -> dict[str, Any]:
    """Measure engines over batch and contexts."""
    from upfusion.bench.contender import opened

    engines = [engine_path(setting.work, builder, setting.size, batch) for builder in BUILDERS for batch in (1, 4)]
    there = [engine for engine in engines if engine.is_file()]
    if not there:
        raise NothingToRunError(f"no engine was accepted at {setting.size[0]}x{setting.size[1]}")
    options = dataclasses.replace(LATENCY, runs=10, contexts=(1, 2, 4), windows=3)
    return record_of(bench([opened(engine) for engine in there], None, options, size=setting.size))


def flips(setting: Setting) -> dict[str, Any]:
    """Count the decisions that move from FP32 on the CPU to FP16 on the GPU."""
    found: dict[str, Any] = {}
    graph, reference = (graph_path(setting.work, "ours-ranks", kind, setting.size, 1) for kind in ("fp16", "fp32"))
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "PyTorch": lambda: _torch_flips(setting),
        "ONNX Runtime CUDA": lambda: _upfusion(
            "accept", _present(graph), "--data", *_pairs(setting), "--reference", _present(reference),
            "--psnr", GATE_PSNR_DB, "--device", "cuda", "--json",
        ),
        "TensorRT": lambda: _upfusion(
            "build", _present(graph), "-o", setting.work / "ranks.engine", "--builder", "tensorrt",
            "--accept", *_pairs(setting), "--reference", _present(reference), "--psnr", GATE_PSNR_DB, "--json",
        )["engines"][0]["acceptance"],
    }  # fmt: skip
    for name, way in ways.items():
        try:
            found[name] = way()
        except NothingToRunError as error:
            found[name] = {"cannot_run": str(error)}
    if all("cannot_run" in one for one in found.values()):
        raise NothingToRunError("; ".join(f"{name}: {one['cannot_run']}" for name, one in found.items()))
    return found


def _torch_flips(setting: Setting) -> dict[str, Any]:
    """Return the share of places in each decision that differ between FP32 on the CPU and FP16 on the GPU."""
    import torch

    from upfusion.checkpoint import load_checkpoint
    from upfusion.export.deploy import fix_text, use_half_maps
    from upfusion.runtime.images import prepare

    loaded = load_checkpoint(setting.checkpoint)
    if loaded.text is None or not torch.cuda.is_available():
        raise NothingToRunError("PyTorch sees no GPU" if loaded.text else "the checkpoint carries no text feature")
    right, half = fix_text(loaded.model, loaded.text)[0], fix_text(loaded.model, loaded.text)[0]
    use_half_maps(half)
    half.cuda()
    images = [torch.from_numpy(plane) for plane in prepare(*night_street(*setting.size))]
    with torch.inference_mode():
        fused, decisions = right.with_decisions(*images)
        fused16, taken = half.with_decisions(*(image.cuda() for image in images))
    error = (fused16.cpu().clamp(0, 1) - fused.clamp(0, 1)).square().mean()
    return {
        "moved_share": {
            name: float((taken[name].cpu() != decision).float().mean()) for name, decision in decisions.items()
        },
        "psnr_db": float(-10 * torch.log10(error)),
    }


def plan(setting: Setting, arguments: Sequence[str]) -> list[Step]:
    """Return all steps, most important first; ``arguments`` go to each process."""

    def step(what: str, size: tuple[int, int], batch: int, limit_s: float, builder: str = "") -> Step:
        place = f"{size[0]}x{size[1]}"
        name = f"{what}{' ' + builder if builder else ''} {place} batch {batch}"
        command = [sys.executable, "-m", "benchmarks.gpu_suite", "--step", what, "--into", "{into}"]
        command += ["--size", place, "--batch", str(batch), *(["--builder", builder] if builder else []), *arguments]
        return Step(name=name, command=tuple(command), limit_s=limit_s)

    first = [step("graphs", *FIRST, 180), step("tests", *FIRST, 90)]
    first += [step("build", *FIRST, 120, builder) for builder in BUILDERS]
    first += [step("latency", *FIRST, 120), step("cuda-graph", *FIRST, 30), step("flips", *FIRST, 90)]
    rest = []
    for size, batch in REST:
        rest.append(step("graphs", size, batch, 120))
        rest += [step("build", size, batch, 90, builder) for builder in BUILDERS]
        rest.append(step("latency", size, batch, 90))
        if (size, batch) == (FIRST[0], 4):
            rest.append(step("throughput", *FIRST, 60))
    return first + rest


WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "graphs": graphs,
    "tests": tests,
    "build": build,
    "latency": latency,
    "cuda-graph": cuda_graph,
    "throughput": throughput,
    "flips": flips,
}


def child(chosen: argparse.Namespace, setting: Setting) -> int:
    """Do one step, write its figures, and return the exit code."""
    try:
        figures = WORK[chosen.step](setting, *([chosen.builder] if chosen.builder else []))
    except (NothingToRunError, UPFusionError) as error:
        write_record({"why": error.problem if isinstance(error, UPFusionError) else str(error)}, chosen.into)
        return CANNOT_RUN
    write_record(figures, chosen.into)
    return 0


def prepare(setting: Setting) -> None:
    """Export every graph that the suite wants; needs no GPU."""
    for size, batch in (FIRST, *REST):
        made = graphs(dataclasses.replace(setting, size=size, batch=batch))
        print(*made, sep="\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite, or one step of it, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=TINY)
    parser.add_argument("--work", type=Path, default=Path("gpu_suite"), help="graphs, engines and pairs are kept here")
    parser.add_argument("--budget", type=float, default=570, help="seconds for everything")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    parser.add_argument("--list", action="store_true", help="print the steps and end")
    parser.add_argument("--prepare", action="store_true", help="export the graphs and end")
    parser.add_argument("--step", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=parse_size, default=FIRST[0], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=FIRST[1], help=argparse.SUPPRESS)
    parser.add_argument("--builder", choices=BUILDERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    setting = Setting(checkpoint=chosen.checkpoint, work=chosen.work, size=chosen.size, batch=chosen.batch)
    steps = plan(setting, ("--checkpoint", str(chosen.checkpoint), "--work", str(chosen.work)))
    if chosen.list:
        print(*(f"{step.name} (at most {step.limit_s:g} s)" for step in steps), sep="\n")
        return 0
    if not chosen.prepare and not installed_gpus():
        print("gpu_suite: there is no NVIDIA GPU here, so nothing was run", file=sys.stderr)
        return 2
    setting.work.mkdir(parents=True, exist_ok=True)
    if chosen.prepare:
        prepare(setting)
        return 0
    if chosen.step:
        return child(chosen, setting)
    record = {
        **circumstances("gpu_suite", arguments),
        "gpus": [dataclasses.asdict(gpu) for gpu in installed_gpus()],
        "checkpoint": {"name": chosen.checkpoint.name, "sha256": sha256_of(chosen.checkpoint)},
    }
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
    run_steps(steps, record, chosen.output, budget_s=chosen.budget, say=say)
    print(f"wrote {chosen.output}")
    return 0


def _pairs(setting: Setting) -> tuple[Path, Path]:
    """Return two folders of drawn pairs of the size."""
    folder = setting.work / f"pairs.{setting.size[0]}x{setting.size[1]}"
    return write_night_streets(folder, setting.size, GATE_PAIRS)


def _upfusion(*arguments: object) -> Any:
    """Run a verb with ``--json`` and return what it prints; a rejection (exit code 1) is a result too.

    Raises:
        NothingToRunError: the verb ended with an error.
    """
    command = [sys.executable, "-m", "upfusion", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise NothingToRunError((errors or lines[-1:] or [f"exit code {done.returncode}"])[0])
    return json.loads(done.stdout)


def _present(path: Path) -> Path:
    """Return a path if something is there.

    Raises:
        NothingToRunError: nothing is.
    """
    if not path.is_file():
        raise NothingToRunError(f"{path.name} was not made")
    return path


def _first_engine(setting: Setting) -> Path:
    """Return an accepted engine of the size.

    Raises:
        NothingToRunError: there is none.
    """
    for builder in BUILDERS:
        if (engine := engine_path(setting.work, builder, setting.size, setting.batch)).is_file():
            return engine
    raise NothingToRunError(f"no engine was accepted at {setting.size[0]}x{setting.size[1]}")


if __name__ == "__main__":
    sys.exit(main())
