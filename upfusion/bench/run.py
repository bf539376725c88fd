"""A whole benchmark: open, warm up, measure everything, and keep what was found with the circumstances."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from upfusion.bench.contender import Contender, ImagePair, Opened, scaled
from upfusion.bench.gpu_meter import GpuMeter, GpuState
from upfusion.bench.machine import machine, resident_bytes, versions
from upfusion.bench.measure import Load, Throughput, interleaved_ms, loads_of, parts_of, throughputs
from upfusion.bench.roofline import Roofline, roofline_of
from upfusion.bench.summary import Summary, summary_of
from upfusion.runtime.errors import InputError, UPFusionError

LATENCY_MEANS = "uint8 images in host memory to uint8 images in host memory, one call after another"
BARE = "bare"
SCHEMA = 1

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How much is measured."""

    runs: int = 30
    warm_up: int = 5
    """Rounds that are thrown away; engines capture their CUDA graph in the second."""
    parts_runs: int = 10
    batches: tuple[int, ...] | None = None
    """Pairs in a call, for throughput; None: as many as each graph was exported for."""
    contexts: tuple[int, ...] = (1,)
    seconds: float = 1.5
    """Length of one window of throughput: NVML's energy counter needs about a second."""
    windows: int = 3

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one that measures nothing.
        """
        counts = (self.runs, self.parts_runs, self.windows, *(self.batches or (1,)), *self.contexts)
        if min(counts) < 1 or self.warm_up < 0 or self.seconds < 0 or not self.contexts:
            raise InputError(f"{self}: nothing can be measured with less than one", "use 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactResult:
    """What was measured of one artifact; milliseconds are medians where nothing else is said."""

    name: str
    sha256: str
    kind: str
    """``onnx``, ``engine`` or ``checkpoint``."""
    precision: str
    device: str
    size: tuple[int, int]
    """Height and width of the images."""
    pairs_per_call: int
    load_seconds: float
    first_call_ms: float
    """Allocates, and compiles where the library does that at run time."""
    second_call_ms: float
    """Engines capture their CUDA graph here."""
    grown_bytes: int | None
    """Resident memory that loading and the first two calls added."""
    latency: Summary
    times_ms: tuple[float, ...]
    parts_ms: Mapping[str, float]
    bare: Summary | None
    """``InferenceSession.run`` alone on prepared inputs; None without an ONNX Runtime session."""
    overhead_ms: float | None
    """Median over the rounds of a call's time less the bare run's."""
    throughput: tuple[Throughput, ...]
    not_measured: tuple[str, ...]
    """Sentences."""
    roofline: Roofline | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """A benchmark with its circumstances."""

    date: str
    """UTC, ISO 8601."""
    command: str
    machine: Mapping[str, Any]
    gpu: Mapping[str, Any] | None
    """Name, driver, and the state before and after; None without NVML."""
    gpu_note: str
    """Why there is no ``gpu``; empty if there is."""
    versions: Mapping[str, str]
    images: str
    """Where the images come from."""
    options: BenchOptions
    artifacts: tuple[ArtifactResult, ...]
    peak_resident_bytes: int | None
    latency_means: str = LATENCY_MEANS
    schema: int = field(default=SCHEMA)


def bench(
    artifacts: Sequence[Opened],
    pairs: Sequence[ImagePair] | None,
    options: BenchOptions,
    *,
    size: tuple[int, int] | None = None,
    command: str = "",
    images: str = "",
    step: Step = lambda what: None,
) -> BenchResult:
    """Measure artifacts against each other and close them.

    Args:
        artifacts: loaded, with names that differ.
        pairs: images to fuse in turn, all of one size; None draws a night street.
        options: how much.
        size: (height, width) to scale the images to; None keeps the size of ``pairs``, or takes each artifact's best.
        command: what was typed, for the record.
        images: where ``pairs`` come from, for the record.
        step: called before each round with what is being done.

    Raises:
        InputError: names that are not different, or a size that an artifact does not take.
        UPFusionError: an artifact fails.
    """
    names = [artifact.name for artifact in artifacts]
    waiting = list(artifacts)
    with ExitStack() as stack:
        stack.callback(_close, waiting)
        if len(set(names)) < len(names):
            raise InputError(f"two artifacts have the same name: {', '.join(names)}", "give each artifact once")
        meter, gpu_note = _meter(artifacts)
        contenders = []
        while waiting:
            chosen = _images(waiting[0], pairs, size)
            contenders.append(Contender(waiting[0], chosen, max(options.contexts), _largest(options)))
            stack.enter_context(contenders[-1])
            waiting.pop(0)
        before = meter.state() if meter else None
        results = _measured(contenders, options, meter, step)
        return BenchResult(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=command,
            machine=machine(),
            gpu=_gpu_record(meter, before),
            gpu_note=gpu_note,
            versions=versions(),
            images=images or "a night street, drawn by upfusion",
            options=options,
            artifacts=tuple(results),
            peak_resident_bytes=resident_bytes("VmHWM"),
        )


def _measured(
    contenders: Sequence[Contender], options: BenchOptions, meter: GpuMeter | None, step: Step
) -> list[ArtifactResult]:
    """Measure everything of all contenders."""
    first_calls, grown = [], []
    for contender in contenders:
        step(f"first calls of {contender.name}")
        before = resident_bytes()
        first_calls.append((contender.call_ms(), contender.call_ms()))
        after = resident_bytes()
        grown.append(0 if before is None or after is None else after - before)
    subjects = {contender.name: contender.call_ms for contender in contenders}
    subjects |= {f"{BARE} {contender.name}": contender.bare_ms for contender in contenders if contender.has_bare}
    times = interleaved_ms(subjects, runs=options.runs, warm_up=options.warm_up, done=lambda: step("latency"))
    parts = parts_of(contenders, options.parts_runs, done=lambda: step("parts"))
    loads: list[Load] = []
    left_out: dict[str, list[str]] = {}
    for contender in contenders:
        taken, left_out[contender.name] = loads_of(contender, options.batches, options.contexts)
        loads += taken
    flow = throughputs(
        loads, seconds=options.seconds, windows=options.windows, meter=meter, done=lambda: step("throughput")
    )
    step("counting")
    return [
        _result(
            contender,
            first_calls[place],
            grown[place],
            times,
            parts[contender.name],
            tuple(found for load, found in zip(loads, flow, strict=True) if load.contender is contender),
            left_out[contender.name],
            meter,
        )
        for place, contender in enumerate(contenders)
    ]


def _close(artifacts: Sequence[Opened]) -> None:
    """Close artifacts that nobody took over."""
    for artifact in artifacts:
        artifact.backend.close()


def rounds_of(count: int, options: BenchOptions) -> int:
    """Return about how many steps ``count`` artifacts take, for a progress bar."""
    loads = count * len(options.batches or (1,)) * len(options.contexts)
    return count + options.warm_up + options.runs + 1 + options.parts_runs + options.windows * loads + 1


def _result(
    contender: Contender,
    first_calls: tuple[float, float],
    grown: int,
    times: Mapping[str, list[float]],
    parts: Mapping[str, float],
    throughput: tuple[Throughput, ...],
    not_measured: list[str],
    meter: GpuMeter | None,
) -> ArtifactResult:
    """Put the figures of one contender together."""
    artifact = contender.artifact
    calls, bare = times[contender.name], times.get(f"{BARE} {contender.name}")
    on_gpu = artifact.backend.device.lower() != "cpu"
    roofline = roofline_of(artifact, meter.name if meter and on_gpu else None, contender.size, parts.get("compute"))
    if isinstance(roofline, str):
        not_measured = [*not_measured, f"roofline: {roofline}"]
    if all(one.joules_per_pair is None for one in throughput):
        not_measured = [*not_measured, "energy: no counter"]
    if bare is None:
        not_measured = [*not_measured, "bare run: no ONNX Runtime session"]
    manifest = artifact.manifest
    return ArtifactResult(
        name=artifact.name,
        sha256=manifest.sha256 if manifest else "",
        kind=manifest.kind if manifest else "checkpoint",
        precision=manifest.precision if manifest else "fp32",
        device=artifact.backend.device,
        size=contender.size,
        pairs_per_call=contender.pairs_per_call,
        load_seconds=artifact.load_seconds,
        first_call_ms=first_calls[0],
        second_call_ms=first_calls[1],
        grown_bytes=None if artifact.grown_bytes is None else artifact.grown_bytes + grown,
        latency=summary_of(calls),
        times_ms=tuple(calls),
        parts_ms=parts,
        bare=summary_of(bare) if bare else None,
        overhead_ms=float(np.median(np.subtract(calls, bare))) if bare else None,
        throughput=throughput,
        not_measured=tuple(not_measured),
        roofline=None if isinstance(roofline, str) else roofline,
    )


def _images(artifact: Opened, pairs: Sequence[ImagePair] | None, size: tuple[int, int] | None) -> Sequence[ImagePair]:
    """Return the pairs that an artifact is fed."""
    if pairs is None:
        from upfusion.samples import night_street

        return [night_street(*(size or artifact.contract.sizes.optimum))]
    if size is not None:
        return [scaled(pair, size) for pair in pairs]
    sizes = {first.shape[:2] for first, _ in pairs}
    if len(sizes) > 1:
        raise InputError(f"the pairs have {len(sizes)} sizes", "bring them to one: --size 480x640")
    return pairs


def _largest(options: BenchOptions) -> int | None:
    """Return how many pairs a call may hold."""
    return max(options.batches) if options.batches else None


def _meter(artifacts: Sequence[Opened]) -> tuple[GpuMeter | None, str]:
    """Return the meter of the GPU that the artifacts run on, or none and why."""
    if all(artifact.backend.device.lower() == "cpu" for artifact in artifacts):
        return None, "nothing here runs on a GPU"
    try:
        return GpuMeter(), ""
    except UPFusionError as error:
        return None, error.problem


def _gpu_record(meter: GpuMeter | None, before: GpuState | None) -> dict[str, Any] | None:
    """Return what the result says of the GPU."""
    if meter is None:
        return None
    return {"name": meter.name, "driver": meter.driver, "before": before, "after": meter.state()}
