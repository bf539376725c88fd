"""The gate: an artifact counts only after it fused real pairs as its FP32 reference does.

Builds are not reproducible and compilers miscompile, so what is judged is the artifact on its device, by the images
that a user gets from it. What decides is finite, structured images near enough to the reference's. What explains, and
is reported beside it: moved decisions, where the graph exposes them; the change of fusion metrics; and black pixels
that became 1, which the eye cannot see and which ruin SSIM on black backgrounds.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upfusion import __version__
from upfusion.export.verify import difference
from upfusion.runtime.backends.base import Arrays, Backend
from upfusion.runtime.decisions import Decisions
from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.fuser import Fuser
from upfusion.runtime.images import Image, gray8
from upfusion.runtime.manifest import Contract, Manifest, read_manifest
from upfusion.runtime.pairs import Pair, naming, read_pair

Gray = npt.NDArray[np.uint8]

ACCEPTED, REJECTED = "accepted", "rejected"

FLAT_LEVELS = 2
"""An image whose levels span less than this shows nothing."""

DECISIONS = (".order", ".keep")
"""How the names of outputs that hold decisions end (``upfusion.model.decisions``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an artifact must reach on every pair."""

    psnr_db: float = 50.0
    """Of the 8-bit image, against the reference's: at 50 dB the typical pixel is right to the level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An opened artifact; it is closed by its owner."""

    name: str
    backend: Backend
    contract: Contract


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
    """One fusion metric of one pair."""

    reference: float
    artifact: float
    black_kept: float
    """The artifact's with pixels that went from 0 to 1 put back to 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """One pair; figures are None where the artifact gave no finite image."""

    name: str
    findings: tuple[str, ...] = ()
    """What no artifact may do, in words: not finite, black, flat."""
    max_levels: int | None = None
    mean_levels: float | None = None
    shift_levels: float | None = None
    """Mean signed difference: a shift of the whole image."""
    psnr_db: float | None = None
    """None also where the images are equal."""
    ssim: float | None = None
    black_to_one: int = 0
    """Pixels that are 0 in the reference and 1 in the artifact."""
    ssim_black_kept: float | None = None
    """SSIM with those pixels put back to 0."""
    moved: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Decision -> places of the order, or entries of the mask, that differ; only decisions that both expose."""
    metrics: Mapping[str, MetricChange] = dataclasses.field(default_factory=dict)

    @property
    def quality_db(self) -> float:
        """PSNR for comparing: infinite where the images are equal, minus infinite where there is none."""
        if self.max_levels is None:
            return -math.inf
        return math.inf if self.psnr_db is None else self.psnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceReport:
    """The verdict and what it rests on."""

    reference: str
    reference_sha256: str
    device: str
    limits: Limits
    pairs: tuple[PairReport, ...]

    @property
    def worst(self) -> PairReport:
        """The pair that decides."""
        return min(self.pairs, key=lambda pair: (not pair.findings, pair.quality_db))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the artifact is rejected, a sentence each; empty if it is accepted."""
        reasons = [f"pair {pair.name}: the image is {what}" for pair in self.pairs for what in pair.findings]
        low = [pair for pair in self.pairs if not pair.findings and pair.quality_db < self.limits.psnr_db]
        if low:
            worst = min(low, key=lambda pair: pair.quality_db)
            reasons.append(
                f"{len(low)} of {len(self.pairs)} pairs are below {self.limits.psnr_db:g} dB; worst {worst.name}: "
                f"{worst.quality_db:.2f} dB, up to {worst.max_levels} levels off"
            )
        return tuple(reasons)

    @property
    def verdict(self) -> str:
        """``accepted`` or ``rejected``."""
        return REJECTED if self.reasons else ACCEPTED

    @property
    def moved(self) -> dict[str, int]:
        """Decision -> places that differ, over all pairs; empty where the graphs expose none."""
        total: dict[str, int] = {}
        for pair in self.pairs:
            for name, count in pair.moved.items():
                total[name] = total.get(name, 0) + count
        return total

    def metric_means(self) -> dict[str, MetricChange]:
        """Return each metric's mean over the pairs that have it."""
        names = {name: None for pair in self.pairs for name in pair.metrics}
        means = {}
        for metric in names:
            found = [pair.metrics[metric] for pair in self.pairs if metric in pair.metrics]
            means[metric] = MetricChange(
                **{
                    field.name: float(np.mean([getattr(change, field.name) for change in found]))
                    for field in dataclasses.fields(MetricChange)
                }
            )
        return means

    def to_dict(self) -> dict[str, Any]:
        """Return the report for the manifest, in plain JSON values."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "reference": {"name": self.reference, "sha256": self.reference_sha256},
            "device": self.device,
            "limits": dataclasses.asdict(self.limits),
            "worst_pair": self.worst.name,
            "moved": self.moved,
            "metrics": {name: dataclasses.asdict(change) for name, change in self.metric_means().items()},
            "pairs": [dataclasses.asdict(pair) | {"findings": list(pair.findings)} for pair in self.pairs],
            "judged": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "tool_version": __version__,
        }


def judge(
    subject: Subject,
    reference: Subject,
    reference_sha256: str,
    pairs: Sequence[Pair],
    limits: Limits,
    *,
    metrics: Sequence[str] = (),
    done: Callable[[Pair], None] = lambda pair: None,
) -> AcceptanceReport:
    """Fuse every pair with both and return the verdict. Colours are compared as a user sees them.

    A subject that takes decisions gets the reference's.

    Args:
        subject: the artifact to judge.
        reference: the FP32 artifact that is right.
        reference_sha256: its digest, for the record.
        pairs: real pairs of sizes that both take; at least one.
        limits: what every pair must reach.
        metrics: names of fusion metrics (``upfusion.metrics``) whose change is reported.
        done: called after each pair.

    Raises:
        InputError: no pairs, or one that cannot be read or has another size; the pair is named.
        DeviceError: the device failed.
    """
    if not pairs:
        raise InputError("no pairs to judge by", "give two folders with images of the same names")
    ours, theirs = _Recording(subject), _Recording(reference)
    reports = []
    for pair in pairs:
        images = read_pair(pair)
        with naming(pair):
            wanted = theirs.fuse(*images)
            got = ours.fuse(*images, finite=False, given=theirs.decisions)  # None where it is not finite
        moved = _moved(theirs.decisions, ours.decisions)
        if got is None:
            what = f"not finite in {ours.broken:,} of its values"
            reports.append(PairReport(name=pair.name, findings=(what,), moved=moved))
        else:
            assert wanted is not None  # the reference was asked for finite values
            reports.append(_compared(pair.name, got, wanted, images, moved, metrics))
        done(pair)
    return AcceptanceReport(
        reference=reference.name,
        reference_sha256=reference_sha256,
        device=subject.backend.device,
        limits=limits,
        pairs=tuple(reports),
    )


def record_acceptance(artifact: Path, report: AcceptanceReport) -> Manifest:
    """Write report and verdict into the artifact's manifest and return it.

    An engine that was judged was executed, whatever the verdict.
    """
    manifest = read_manifest(artifact)
    manifest = dataclasses.replace(manifest, acceptance=report.to_dict())
    if manifest.build is not None:
        manifest = dataclasses.replace(manifest, build=dataclasses.replace(manifest.build, executed_on_gpu=True))
    manifest.write(artifact)
    return manifest


class _Recording:
    """A backend between a fuser and the artifact's own, which keeps what the image does not show."""

    def __init__(self, subject: Subject) -> None:
        self.device = subject.backend.device
        self.decisions: dict[str, npt.NDArray[Any]] = {}
        """Of the last pair."""
        self.broken = 0
        """Values of the last fused image that are NaN or infinite."""
        self._backend = subject.backend
        self._image = subject.contract.outputs[0].name
        self._fuser = Fuser(self, subject.contract, name=subject.name)

    def fuse(self, first: Image, second: Image, *, finite: bool = True, given: Decisions | None = None) -> Gray | None:
        """Return the fused image; None where it is not finite, unless ``finite`` demands that it is.

        ``given`` are decisions for an artifact that takes them; any other goes by its own.
        """
        try:
            if given is not None and self._fuser.contract.decision_inputs:
                return self._fuser.given(first, second, given)
            fused: Gray = self._fuser(first, second)
        except ArtifactError:
            if finite or not self.broken:
                raise
            return None
        return fused

    def run(self, inputs: Arrays) -> Arrays:
        """Run the artifact."""
        outputs = self._backend.run(inputs)
        image = outputs[self._image]
        self.broken = 0 if image.dtype == np.uint8 else int(image.size - np.isfinite(image).sum())
        # Copies: the next call overwrites them. The first image of a batch is the pair; the rest fills it up.
        self.decisions = {name: np.array(value[:1]) for name, value in outputs.items() if name.endswith(DECISIONS)}
        return outputs

    def close(self) -> None:
        """Do nothing: the backend belongs to whoever opened it."""


def _moved(reference: Mapping[str, npt.NDArray[Any]], taken: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """Return how many places of each decision differ."""
    return {
        name: int(np.count_nonzero(decided != taken[name]))
        for name, decided in reference.items()
        if name in taken and taken[name].shape == decided.shape
    }


def _compared(
    name: str,
    got: Gray,
    wanted: Gray,
    images: tuple[Image, Image],
    moved: Mapping[str, int],
    metrics: Sequence[str],
) -> PairReport:
    """Return the report of one pair with two finite images."""
    if got.shape != wanted.shape:
        raise InputError(
            f"pair {name}: the artifact's image is {got.shape}, the reference's {wanted.shape}",
            "export both with the same --io and --color",
        )
    findings = []
    if int(wanted.max()) - int(wanted.min()) >= FLAT_LEVELS:
        if not got.any():
            findings.append("black")
        elif int(got.max()) - int(got.min()) < FLAT_LEVELS:
            findings.append("flat")
    black = (wanted == 0) & (got == 1)
    kept = np.where(black, np.uint8(0), got)
    found = difference(_planes(got), _planes(wanted), name)
    repaired = difference(_planes(kept), _planes(wanted), name) if black.any() else found
    return PairReport(
        name=name,
        findings=tuple(findings),
        max_levels=found.max_levels,
        mean_levels=found.mean_levels,
        shift_levels=float((got.astype(np.int16) - wanted).mean()),
        psnr_db=None if math.isinf(found.psnr_db) else found.psnr_db,
        ssim=found.ssim,
        black_to_one=int(np.count_nonzero(black)),
        ssim_black_kept=repaired.ssim,
        moved=dict(moved),
        metrics=_metric_changes(images, wanted, got, kept, metrics) if metrics else {},
    )


def _planes(image: Gray) -> Gray:
    """Return an (H, W, 3) image as its channels one below the other, so that a wrong channel order shows."""
    return image if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1)).reshape(-1, image.shape[1])


def _metric_changes(
    images: tuple[Image, Image], wanted: Gray, got: Gray, kept: Gray, names: Sequence[str]
) -> dict[str, MetricChange]:
    """Return the metrics of both fused images against the pair."""
    from upfusion.metrics import Sources, evaluate_sources

    sources = Sources(*(gray8(image) for image in images))
    reference, artifact, repaired = (evaluate_sources(sources, gray8(image), names) for image in (wanted, got, kept))
    return {
        name: MetricChange(reference=reference[name], artifact=artifact[name], black_kept=repaired[name])
        for name in names
    }
