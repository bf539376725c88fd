"""``upfusion accept``: the gate between a build and its use."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfusion.cli.console import check_line, console, print_json, progress_bar
from upfusion.cli.numbers import decibels, not_nan

if TYPE_CHECKING:
    from upfusion.export.acceptance import AcceptanceReport
    from upfusion.runtime.pairs import Pair

REJECTED_CODE = 1
"""Exit code of a rejection."""
SHOWN = 10


def accept(
    artifact: Annotated[Path, typer.Argument(help="The engine, or an ONNX file.")],
    data: Annotated[
        tuple[Path, Path],
        typer.Option(metavar="VIS IR", help="Real pairs: two image files, or two folders matched by name."),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="FP32 graph or checkpoint to agree with; default: the one named in the manifest, beside the artifact.",
            show_default=False,
        ),
    ] = None,
    psnr: Annotated[
        float, typer.Option(callback=not_nan, help="What every pair must reach, in dB on the 8-bit image.")
    ] = 50.0,
    metrics: Annotated[bool, typer.Option("--metrics", help="Report the change of the fusion metrics too.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N pairs only.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or tensorrt.")] = "auto",
    text: Annotated[
        Path | None, typer.Option(help="Text feature, if the reference is a checkpoint.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Let an artifact fuse real pairs and compare it with its FP32 reference, on the device that will run it.

    An image that is not finite, black or flat, or a pair below --psnr, rejects it. Moved decisions (of graphs exported
    with --expose-ranks), the change of the metrics, and black pixels that became 1 are reported and do not decide.
    One exported with --ranking given computes with the reference's decisions.
    Report and verdict go into the artifact's manifest. Exit code 0 when accepted, 1 when rejected, 2 on errors.

    Examples:

      upfusion accept fusion.engine --data vis/ ir/ --metrics

      upfusion accept fusion16.onnx --data vis/ ir/ --reference fusion.onnx --psnr 48
    """
    from upfusion.export.acceptance import record_acceptance
    from upfusion.runtime.files import check_output
    from upfusion.runtime.manifest import manifest_path
    from upfusion.runtime.pairs import find_pairs

    if artifact.is_file():
        check_output(manifest_path(artifact))  # the verdict goes there
    pairs = find_pairs(*data)[:limit]
    report = judged(artifact, pairs, reference=reference, psnr=psnr, with_metrics=metrics, device=device, text=text)
    manifest = record_acceptance(artifact, report)
    if json:
        print_json(manifest.acceptance)
    else:
        show(report)
    verdict_line(artifact.name, report)
    if report.reasons:
        raise typer.Exit(REJECTED_CODE)


def judged(
    artifact: Path,
    pairs: Sequence[Pair],
    *,
    reference: Path | None,
    psnr: float,
    with_metrics: bool,
    device: str,
    text: Path | None,
) -> AcceptanceReport:
    """Open an artifact and its reference, fuse every pair with both under a bar, and return the report."""
    from upfusion.cli.artifacts import open_subject
    from upfusion.export.acceptance import Limits, judge
    from upfusion.export.reference import reference_for
    from upfusion.runtime.errors import InputError
    from upfusion.runtime.files import sha256_of
    from upfusion.runtime.manifest import read_manifest

    manifest = read_manifest(artifact)
    against = reference_for(artifact, manifest, reference)
    names: tuple[str, ...] = ()
    if with_metrics:
        from upfusion.metrics import METRICS

        names = tuple(METRICS)
    with _not_sent_here():
        subject = open_subject(artifact, device=device)
    try:
        right = open_subject(against, device="cpu", text=text)
        try:
            prompt = getattr(right.backend, "prompt", manifest.text.prompt)
            if prompt != manifest.text.prompt:
                raise InputError(
                    f"{artifact.name} was exported for the prompt {manifest.text.prompt!r:.60}, "
                    f"{against.name} carries {prompt!r:.60}",
                    "pass the text feature that it was exported with: --text text.npz",
                )
            with progress_bar() as bar:
                task = bar.add_task(f"comparing with {against.name}", total=len(pairs))
                return judge(
                    subject,
                    right,
                    sha256_of(against),
                    pairs,
                    Limits(psnr_db=psnr),
                    metrics=names,
                    done=lambda pair: bar.advance(task),
                )
        finally:
            right.backend.close()
    finally:
        subject.backend.close()


@contextlib.contextmanager
def _not_sent_here() -> Iterator[None]:
    """Keep the runtime from sending the user to the gate while he is at it."""
    logger = logging.getLogger("upfusion.runtime.artifact")

    def quiet(record: logging.LogRecord) -> bool:
        return "upfusion accept" not in record.getMessage()

    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


def show(report: AcceptanceReport) -> None:
    """Print the worst pairs, the metrics and what moved."""
    from rich.table import Table

    table = Table("pair", "PSNR", "max |Δ|", "mean |Δ|", "shift", "SSIM", "0 → 1", "moved")
    for pair in sorted(report.pairs, key=lambda pair: (not pair.findings, pair.quality_db))[:SHOWN]:
        if pair.findings:
            table.add_row(pair.name, ", ".join(pair.findings))
            continue
        table.add_row(
            pair.name,
            decibels(pair.quality_db),
            str(pair.max_levels),
            f"{pair.mean_levels:.4f}",
            f"{pair.shift_levels:+.4f}",
            f"{pair.ssim:.6f}",
            str(pair.black_to_one),
            str(sum(pair.moved.values())) if pair.moved else "-",
        )
    console.print(table)
    if len(report.pairs) > SHOWN:
        console.print(f"the worst {SHOWN} of {len(report.pairs)} pairs")
    means = report.metric_means()
    if means:
        changes = Table("metric", "reference", "artifact", "change", "change, black kept")
        for name, mean in means.items():
            changes.add_row(
                name,
                f"{mean.reference:.6g}",
                f"{mean.artifact:.6g}",
                f"{mean.artifact - mean.reference:+.2e}",
                f"{mean.black_kept - mean.reference:+.2e}",
            )
        console.print(changes)
    if report.moved:
        console.print("decisions moved: " + ", ".join(f"{name} {count}" for name, count in report.moved.items()))


def verdict_line(name: str, report: AcceptanceReport) -> None:
    """Print the verdict with its reasons."""
    worst = report.worst
    if report.reasons:
        for reason in report.reasons:
            check_line(False, "accept", reason)
        console.print(
            f"rejected; the report is in the manifest of {name}. Build again, or find the cause: upfusion verify",
            markup=False,
        )
    else:
        check_line(
            True,
            "accept",
            f"{name} on {report.device}: worst pair {worst.name} {decibels(worst.quality_db)} "
            f"(limit {report.limits.psnr_db:g}), {len(report.pairs)} pairs against {report.reference}",
        )
