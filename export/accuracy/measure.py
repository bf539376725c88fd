"""Measure a half-precision artifact against the FP32 network: numerics, decisions, and both together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from upfusion.arithmetic import LARGEST_HALF, Tf32Convolutions
from upfusion.checkpoint import Checkpoint
from upfusion.export.accuracy.flips import Flips, all_flips
from upfusion.export.accuracy.half_graph import EmulatedGraph, emulate_half
from upfusion.export.accuracy.levels import Gray, Levels, levels
from upfusion.export.deploy import DeployNetwork, fix_text
from upfusion.export.frozen_ranking import frozen_decisions
from upfusion.model.decisions import decision_points, imposing, recording
from upfusion.model.margins import recording_values
from upfusion.runtime.backends.base import Backend
from upfusion.runtime.decisions import decides_nothing
from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.fuser import Fuser
from upfusion.runtime.images import finish, gray8, merge_chroma, prepare
from upfusion.runtime.manifest import read_manifest
from upfusion.runtime.pairs import Pair, naming, read_pair
from upfusion.text import TextFeatures

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extreme:
    """Largest magnitude that one edge of the half graph had to hold."""

    site: str
    largest: float

    @property
    def held(self) -> bool:
        """Whether half can hold it: values that round to more than 65,504 become infinite."""
        return bool(np.isfinite(self.largest)) and self.largest < LARGEST_HALF + 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAccuracy:
    """One pair's figures."""

    name: str
    numerics: Levels
    """Against the FP32 network that computes with the graph's decisions."""
    together: Levels
    """Against the FP32 network with its own decisions: what a user sees."""
    decisions: Mapping[str, Flips]
    """By site; empty where the graph decides nothing. The reference decides each site after the graph's decisions
    before it, so that one flip does not count again at every site behind it."""
    tf32: Mapping[str, Flips] | None
    """The same for the network with TF32 convolutions in the graph's place; None where it was not run."""
    tf32_together: Levels | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """What is known about a half-precision artifact."""

    artifact: str
    reference: str
    pairs: tuple[PairAccuracy, ...]
    extremes: tuple[Extreme, ...]
    """The edges with the largest values over all pairs, largest first."""
    edges: int
    """Edges that the graph stores in half."""

    @property
    def saturated(self) -> tuple[Extreme, ...]:
        """Edges whose values half could not hold."""
        return tuple(extreme for extreme in self.extremes if not extreme.held)

    def flips(self, *, tf32: bool = False) -> int:
        """Return how many places and entries moved in all but at ties, in the graph or in the TF32 network."""
        found = [pair.tf32 if tf32 else pair.decisions for pair in self.pairs]
        return sum(flip.moved - flip.tied for pair in found if pair for flip in pair.values())

    @property
    def tied(self) -> int:
        """How many places and entries moved at exact ties: the reference decides them by the habits of its sorting."""
        return sum(flip.tied for pair in self.pairs for flip in pair.decisions.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready figures."""
        return dataclasses.asdict(self)


class EmulatedBackend:
    """A half graph on the CPU with every edge rounded to half; see ``half_graph``.

    Keeps what the last run decided and the largest magnitudes of all runs.
    """

    device = "CPU, half precision emulated"

    def __init__(self, model: onnx.ModelProto, images: Sequence[str], decisions: Sequence[str]) -> None:
        """Load the emulation of ``model``; ``images`` and ``decisions`` name outputs and inner values.

        Raises:
            ArtifactError: ONNX Runtime cannot load it.
        """
        graph: EmulatedGraph = emulate_half(model, tuple(decisions))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        # What runs is what is written, and each extreme right after its edge: 1.9 GB for the tiny network at 480x640.
        # By default all edges wait for their extremes, 7.2 GB, and the arena keeps them after the session's end.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.enable_cpu_mem_arena = False
        try:
            self.session = onnxruntime.InferenceSession(
                graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise ArtifactError(f"ONNX Runtime cannot load the emulated graph: {error}", "report this") from error
        present = {output.name for output in self.session.get_outputs()}
        self._extremes = graph.extremes
        self._images = list(images)
        self._decisions = [name for name in decisions if name in present]
        self.decisions: dict[str, Tensor] = {}
        self.forget_extremes()

    def forget_extremes(self) -> None:
        """Let the largest magnitudes begin anew."""
        self.largest = dict.fromkeys(self._extremes, 0.0)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the image outputs."""
        names = self._images + self._decisions + [name for both in self._extremes.values() for name in both]
        got = dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
        self.decisions = {name: torch.from_numpy(got[name]) for name in self._decisions}
        for site, (high, low) in self._extremes.items():
            found = np.abs(np.array([got[high], got[low], self.largest[site]], np.float64))
            self.largest[site] = float(np.inf if np.isnan(found).any() else found.max())
        return {name: got[name] for name in self._images}

    def close(self) -> None:
        """Let go of the session."""
        del self.session


class ExposedBackend:
    """Any backend, with the decisions among its outputs kept; see ``--expose-ranks``."""

    def __init__(self, backend: Backend, decisions: Sequence[str]) -> None:
        """Take over a backend."""
        self.device = backend.device
        self.decisions: dict[str, Tensor] = {}
        self.largest: dict[str, float] = {}
        self._backend = backend
        self._names = decisions

    def run(self, inputs: Arrays) -> Arrays:
        """Return all outputs."""
        got = self._backend.run(inputs)
        self.decisions = {name: torch.from_numpy(np.array(got[name])) for name in self._names if name in got}
        return got

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()


def measure(
    artifact: str | Path,
    checkpoint: Checkpoint,
    text: TextFeatures | None,
    pairs: Sequence[Pair],
    *,
    backend: Backend | None = None,
    tf32: bool = True,
    done: Callable[[Pair], None] = lambda pair: None,
) -> AccuracyReport:
    """Return how an artifact differs from the FP32 network it was exported from.

    Args:
        artifact: an ``.onnx`` file or an engine, with its manifest.
        checkpoint: the network.
        text: the prompt's feature; None takes what the checkpoint carries.
        pairs: real pairs of sizes that the artifact takes.
        backend: what runs the artifact; closed in the end. None, for ``.onnx`` files only, emulates half edges on the
            CPU. The decisions of any other backend are known if the graph was exported with ``--expose-ranks``.
        tf32: also run the reference with TF32 convolutions, for its flips.
        done: called after each pair.

    Raises:
        ArtifactError: the artifact was made from another checkpoint, or cannot run.
        InputError: no pairs, no text feature, or a pair that the artifact does not take; the pair is named.
    """
    artifact = Path(artifact)
    manifest = read_manifest(artifact)
    if manifest.source.sha256 != checkpoint.sha256:
        raise ArtifactError(
            f"{artifact} was exported from another checkpoint: {manifest.source.name} "
            f"({manifest.source.sha256[:12]}…), not {checkpoint.path.name} ({checkpoint.sha256[:12]}…)",
            "name the checkpoint that it was exported from",
        )
    if manifest.contract.decision_inputs:
        raise decides_nothing(artifact)
    text = text or checkpoint.text
    if text is None:
        raise InputError(f"{checkpoint.path} carries no text feature", "pass --text text.npz")
    if not pairs:
        raise InputError("no pairs to measure on", "give two folders with images of the same names")
    reference = Reference(fix_text(checkpoint.model, text)[0])
    frozen = frozen_decisions(manifest.calibration.get("frozen", {}))
    outputs = [spec.name for spec in manifest.contract.outputs]
    points = list(decision_points(reference.deploy.network))
    watched: EmulatedBackend | ExposedBackend
    if backend is None:
        watched = EmulatedBackend(onnx.load(artifact), outputs, points)
    else:
        watched = ExposedBackend(backend, points)
    planes = manifest.contract.io == "tensor"
    results = []
    with Fuser(watched, manifest.contract, name=artifact.name, source=checkpoint.path.name) as fuse:
        for pair in pairs:
            images = read_pair(pair)
            with naming(pair):
                image = fuse(*images, color="gray" if planes else "auto")
            truth = truth_of(pair.name, images, reference, tf32=tf32)
            results.append(compared(image, truth, reference, {**frozen, **watched.decisions}))
            done(pair)
    extremes = [Extreme(site=site, largest=largest) for site, largest in watched.largest.items()]
    extremes.sort(key=lambda extreme: extreme.largest, reverse=True)
    return AccuracyReport(
        artifact=artifact.name,
        reference=checkpoint.path.name,
        pairs=tuple(results),
        extremes=tuple(extremes[:20]) + tuple(extreme for extreme in extremes[20:] if not extreme.held),
        edges=len(extremes),
    )


class Reference:
    """The FP32 network with the prompt fixed, as images in and out."""

    def __init__(self, deploy: DeployNetwork) -> None:
        """Run this deploy form, which nothing rewrote."""
        self.deploy = deploy

    def run(self, images: tuple[Any, Any]) -> tuple[Gray, dict[str, Tensor]]:
        """Return the 8-bit image and the decisions."""
        with torch.no_grad():
            fused, decisions = self.deploy.with_decisions(*map(torch.from_numpy, prepare(*images)))
        return finish(fused.numpy()[0, 0], *images[0].shape[:2]), decisions

    def imposed(self, images: tuple[Any, Any], decisions: Mapping[str, Tensor]) -> tuple[Gray, dict[str, Flips]]:
        """Return the 8-bit image that these decisions give in FP32, and where FP32 would have decided otherwise.

        Each decision is judged after the imposed ones before it.
        """
        network = self.deploy.network
        # The recorder comes before the imposing hooks, so it sees the network's own choice.
        with recording(network) as own, recording_values(network) as values, imposing(network, decisions):
            image, _ = self.run(images)
        return image, all_flips(own, decisions, values)

    def tf32(self, images: tuple[Any, Any]) -> tuple[Gray, dict[str, Tensor]]:
        """Return image and decisions of TF32 convolutions."""
        with Tf32Convolutions():
            return self.run(images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a pair looks like in FP32, and in TF32 where that was asked for."""

    name: str
    images: tuple[Any, Any]
    fused: Gray
    tf32_fused: Gray | None
    tf32: Mapping[str, Flips] | None


def truth_of(name: str, images: tuple[Any, Any], reference: Reference, *, tf32: bool) -> Truth:
    """Run the reference on a pair's images: once, with TF32 three times."""
    fused, _ = reference.run(images)
    tf32_fused, tf32_flips = None, None
    if tf32:
        tf32_fused, decisions = reference.tf32(images)
        _, tf32_flips = reference.imposed(images, decisions)
    return Truth(name=name, images=images, fused=fused, tf32_fused=tf32_fused, tf32=tf32_flips)


def compared(
    image: NDArray[np.uint8], truth: Truth, reference: Reference, decisions: Mapping[str, Tensor]
) -> PairAccuracy:
    """Return the figures of a fused image that came from these decisions."""
    imposed, found = reference.imposed(truth.images, decisions)

    def shown(fused: Gray) -> Gray:
        """Return what a graph that puts the chroma back would show of a fused image; clipping changes its luma."""
        return fused if image.ndim == 2 else gray8(merge_chroma(truth.images[0], fused))

    got, wanted = gray8(image), shown(truth.fused)
    return PairAccuracy(
        name=truth.name,
        numerics=levels(got, shown(imposed), truth.name),
        together=levels(got, wanted, truth.name),
        decisions=found,
        tf32=truth.tf32,
        tf32_together=None if truth.tf32_fused is None else levels(shown(truth.tf32_fused), wanted, truth.name),
    )
