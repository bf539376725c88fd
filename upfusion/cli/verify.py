"""``upfusion verify``: prove that two artifacts make the same image, or say where and why they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upfusion.cli.console import check_line, console, print_json, progress_bar, spinner
from upfusion.cli.numbers import decibels, not_nan

if TYPE_CHECKING:
    from collections.abc import Callable

    from upfusion.export.accuracy.measure import AccuracyReport, PairAccuracy
    from upfusion.runtime.pairs import Pair

DIFFERENT = 1
"""Exit code when the artifacts differ by more than the limit."""
LEVELS = 1.0
"""Limit of the largest difference where both artifacts are FP32, in 8-bit levels."""
HALF_DB = 45.0
"""Limit of the PSNR on every pair where one is half precision."""
SHOWN = 10
"""Pairs in a table, the worst first."""


def verify(
    artifact: Annotated[Path, typer.Argument(help="The artifact under test: checkpoint, ONNX or engine.")],
    reference: Annotated[Path, typer.Argument(help="What it is compared with: checkpoint, ONNX or engine.")],
    data: Annotated[
        tuple[Path, Path], typer.Option(metavar="VIS IR", help="Two image files, or two folders matched by name.")
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(
            callback=not_nan,
            help="Largest difference allowed, in 8-bit levels; 1 where both are FP32.",
            show_default=False,
        ),
    ] = None,
    psnr: Annotated[
        float | None,
        typer.Option(
            callback=not_nan, help="Judge by this PSNR in dB instead (worst pair); 45 for FP16.", show_default=False
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N pairs only.", show_default=False)] = None,
    text: Annotated[Path | None, typer.Option(help="Text feature for checkpoints.", show_default=False)] = None,
    tf32: Annotated[
        bool, typer.Option(help="FP16 against a checkpoint: also run the checkpoint in TF32, three passes a pair.")
    ] = True,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare two ONNX files block by block, on the first pair.")
    ] = False,
    layers_on: Annotated[
        Literal["onnxruntime", "tensorrt"], typer.Option(help="What runs the first file's layers.")
    ] = "onnxruntime",
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout.")] = False,
) -> None:
    """Fuse the same pairs with two artifacts and compare the 8-bit images.

    An FP16 artifact against its checkpoint is taken apart: numerics (the FP32 network computes with the artifact's
    decisions), decisions (which ranks and mask entries fell the other way, and how close they were, beside those that
    TF32 arithmetic moves), both together, and values that half could not hold. An FP16 ONNX file is emulated on the
    CPU, every edge rounded to half; an engine must have been exported with --expose-ranks for its decisions to show.

    Where an FP32 graph is beyond the limit, it is taken apart from its checkpoint too: on flat images exact ties occur,
    which two runtimes sort differently. If nothing else moved and the images agree with the same decisions, it passes.

    With --layers, two ONNX files are compared block by block, and the first that parts is marked.

    Exit code 0 when they agree, 1 when they differ by more than the limit, 2 on errors.

    Examples:

      upfusion verify fusion.onnx model.safetensors --data vis/ ir/

      upfusion verify half.onnx fusion.onnx --data vis/a.png ir/a.png --layers
    """
    from upfusion.runtime.pairs import find_pairs

    pairs = find_pairs(*data)[:limit]
    if layers:
        _verify_layers(artifact, reference, pairs[0], layers_on, json=json)
    elif (sides := _half_and_checkpoint(artifact, reference)) is not None:
        limits = _Limits(tolerance, HALF_DB if psnr is None and tolerance is None else psnr)
        _verify_half(*sides, pairs, text, limits, tf32=tf32, json=json)
    else:
        limits = _Limits(LEVELS if tolerance is None else tolerance, psnr)
        _verify_images(artifact, reference, pairs, text, limits, json=json)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What decides: the PSNR of the worst pair if it is given, else the largest difference."""

    levels: float | None
    psnr_db: float | None

    def hold(self, max_levels: int, worst_db: float | None) -> bool:
        """Whether figures are within; ``worst_db`` is None or infinite where all images are equal."""
        if self.psnr_db is not None:
            return worst_db is None or worst_db >= self.psnr_db
        return max_levels <= (self.levels or 0)

    def record(self) -> dict[str, float | None]:
        """Return the one that decides, for JSON."""
        return {"tolerance_levels": self.levels} if self.psnr_db is None else {"psnr_db": self.psnr_db}

    def __str__(self) -> str:
        return f"limit {self.levels:g} levels" if self.psnr_db is None else f"limit {self.psnr_db:g} dB"


def _half_and_checkpoint(artifact: Path, reference: Path) -> tuple[Path, Path] | None:
    """Return the FP16 artifact and its checkpoint, whichever way round they were named; None for other pairs.

    An FP32 graph of the same weights stands for the checkpoint if that lies beside it: a graph cannot be told which
    decisions to compute with.
    """
    from upfusion.export.reference import why_not
    from upfusion.runtime.manifest import manifest_path, read_manifest

    for half, other in ((artifact, reference), (reference, artifact)):
        if not manifest_path(half).is_file() or (manifest := read_manifest(half)).precision != "fp16":
            continue
        if _is_checkpoint(other):
            return half, other
        for folder in dict.fromkeys((other.parent, half.parent)):
            beside = folder / manifest.source.name
            if why_not(beside, manifest) is None:
                return half, beside
        console.print(f"numerics and decisions cannot be told apart without {manifest.source.name} beside {other.name}")
    return None


def _verify_half(
    half: Path, checkpoint: Path, pairs: list[Pair], text: Path | None, limits: _Limits, *, tf32: bool, json: bool
) -> None:
    """Report numerics, decisions and both together; exit with 1 beyond the limit or where half overflows."""
    from upfusion.checkpoint import load_checkpoint
    from upfusion.export.accuracy.measure import measure
    from upfusion.export.accuracy.table import decision_table, image_table
    from upfusion.runtime.artifact import open_backend
    from upfusion.text import load_text

    with progress_bar() as bar:
        task = bar.add_task("comparing", total=len(pairs))
        backend = None if half.suffix == ".onnx" else open_backend(half, "auto", None)[0]
        report = measure(
            half,
            load_checkpoint(checkpoint),
            load_text(text) if text else None,
            pairs,
            backend=backend,
            tf32=tf32,
            done=lambda pair: bar.advance(task),
        )
    worst = _worst(report, lambda pair: pair.together.psnr_db)
    levels = max(pair.together.max_levels for pair in report.pairs)
    near = limits.hold(levels, worst.together.psnr_db)
    good = near and not report.saturated
    shows_decisions = any(pair.decisions for pair in report.pairs)
    if json:
        print_json(
            {
                "artifact": str(half),
                "reference": str(checkpoint),
                "agree": good,
                "limits": limits.record(),
                "emulated": backend is None,
                "max_levels": levels,
                "worst_pair": worst.name,
                "flips": report.flips() if shows_decisions else None,
                "tf32_flips": report.flips(tf32=True) if tf32 else None,
                "saturated": [extreme.site for extreme in report.saturated],
                "accuracy": report.to_dict(),
            }
        )
    else:
        console.print(image_table(report))
        if shows_decisions:
            console.print(decision_table(report))
    where = "emulated on the CPU" if backend is None else f"on {backend.device}"
    _print_causes(report, where, tf32=tf32, shows_decisions=shows_decisions)
    together = f"worst pair {worst.name}: {decibels(worst.together.psnr_db)}, max |Δ| {levels} ({limits})"
    check_line(near, "together", together)
    if not good:
        raise typer.Exit(DIFFERENT)


def _print_causes(report: AccuracyReport, where: str, *, tf32: bool, shows_decisions: bool) -> None:
    """Print how far numerics alone, decisions and the range of half go."""
    from upfusion.export.accuracy.table import range_line

    if shows_decisions:
        worst = _worst(report, lambda pair: pair.numerics.psnr_db).numerics
        over = max(pair.numerics.share_over_two for pair in report.pairs)
        check_line(
            True,
            "numerics",
            f"worst pair {decibels(worst.psnr_db)}, up to {over:.2%} of its pixels over 2 levels, {where}",
        )
        beside = f", TF32 moves {report.flips(tf32=True)}" if tf32 else ""
        check_line(True, "decisions", f"{report.flips()} moved on {len(report.pairs)} pairs{beside}; ties left out")
    else:
        check_line(True, "decisions", "the artifact does not show them: export with --expose-ranks")
    check_line(not report.saturated, "range", range_line(report))


def _worst(report: AccuracyReport, psnr_db: Callable[[PairAccuracy], float | None]) -> PairAccuracy:
    """Return the pair with the lowest PSNR, which is None for equal images."""

    def comparable(pair: PairAccuracy) -> float:
        value = psnr_db(pair)
        return math.inf if value is None else value

    return min(report.pairs, key=comparable)


def _verify_layers(
    artifact: Path, reference: Path, pair: Pair, where: Literal["onnxruntime", "tensorrt"], *, json: bool
) -> None:
    """Print every block's difference; exit with 1 where the graphs part."""
    import dataclasses

    from rich.table import Table

    from upfusion.export.layers import compare_layers, first_parting

    with spinner() as bar:
        bar.add_task("running both graphs")
        blocks = compare_layers(artifact, reference, pair, where)
    parting = first_parting(blocks)
    if json:
        print_json(
            {
                "artifact": str(artifact),
                "reference": str(reference),
                "pair": pair.name,
                "first_parting": parting.name if parting else None,
                "blocks": [dataclasses.asdict(block) for block in blocks],
            }
        )
    else:
        table = Table("block", "largest value", "max |Δ|", "mean |Δ|", "of the largest", "limit", "ranks moved")
        for block in blocks:
            share = block.max_difference / block.largest if block.largest else math.nan
            mark = " ← the graphs part here" if block is parting else ""
            table.add_row(
                block.name + mark,
                f"{block.largest:.3g}",
                f"{block.max_difference:.2e}",
                f"{block.mean_difference:.2e}",
                f"{share:.2e}",
                f"{block.tolerance:.2e}",
                str(block.moved) if block.moved else "-",
                style=None if block.agrees else "red",
            )
        console.print(table)
    if parting is None:
        check_line(True, "layers", f"all {len(blocks)} blocks agree on {pair.name}")
        return
    cause = f"; {parting.moved} ranks moved there" if parting.moved else ""
    check_line(False, "layers", f"{artifact.name} and {reference.name} part at {parting.name} on {pair.name}{cause}")
    raise typer.Exit(DIFFERENT)


def _verify_images(
    artifact: Path, reference: Path, pairs: list[Pair], text: Path | None, limits: _Limits, *, json: bool
) -> None:
    """Compare the 8-bit images alone; exit with 1 beyond the limit."""
    from rich.table import Table

    from upfusion.cli.artifacts import open_fuser
    from upfusion.export.verify import compare_artifacts

    with open_fuser(artifact, text=text) as first, open_fuser(reference, text=text) as second, progress_bar() as bar:
        task = bar.add_task("comparing", total=len(pairs))
        result = compare_artifacts(first, second, pairs, done=lambda pair: bar.advance(task))
    worst = result.worst
    near = limits.hold(result.max_levels, worst.psnr_db)
    ties = None if near else _ties(artifact, reference, pairs, text)
    good = near or (ties is not None and ties.excuse(limits))
    if json:
        named = {"artifact": str(artifact), "reference": str(reference), "agree": good, "limits": limits.record()}
        print_json(named | ({"ties": ties.record()} if ties else {}) | result.to_dict())
    else:
        table = Table("pair", "max |Δ|", "mean |Δ|", "PSNR", "SSIM", "pixels off")
        for row in sorted(result.pairs, key=lambda pair: pair.psnr_db)[:SHOWN]:
            table.add_row(
                row.name,
                str(row.max_levels),
                f"{row.mean_levels:.4f}",
                decibels(row.psnr_db),
                f"{row.ssim:.6f}",
                f"{row.share_off:.3%}",
            )
        console.print(table)
        if len(result.pairs) > SHOWN:
            console.print(f"the worst {SHOWN} of {len(result.pairs)} pairs")
    check_line(
        near,
        "verify",
        f"max |Δ| {result.max_levels} levels, worst pair {worst.name}: {decibels(worst.psnr_db)} ({limits}), "
        f"{len(result.pairs)} pairs",
    )
    if ties is not None:
        check_line(
            good,
            "ties",
            f"{ties.tied} decisions moved at exact ties, {ties.flips} elsewhere; with the same decisions max |Δ| "
            f"{ties.max_levels} levels, worst pair {decibels(ties.worst_db)}",
        )
    if not good:
        raise typer.Exit(DIFFERENT)


@dataclass(frozen=True, slots=True)
class _Ties:
    """What is left of an FP32 graph's difference where the checkpoint computes with the graph's decisions."""

    tied: int
    flips: int
    max_levels: int
    worst_db: float | None

    def excuse(self, limits: _Limits) -> bool:
        """Whether nothing but exact ties moved, and they are all of the difference."""
        return self.tied > 0 and not self.flips and limits.hold(self.max_levels, self.worst_db)

    def record(self) -> dict[str, float | None]:
        """Return the figures for JSON."""
        return {
            "tied": self.tied,
            "flips": self.flips,
            "max_levels_with_the_same_decisions": self.max_levels,
            "worst_psnr_db_with_the_same_decisions": self.worst_db,
        }


def _ties(artifact: Path, reference: Path, pairs: list[Pair], text: Path | None) -> _Ties | None:
    """Take a graph apart from its checkpoint, whichever way round they were named; None for other artifacts."""
    from upfusion.checkpoint import load_checkpoint
    from upfusion.export.accuracy.measure import measure
    from upfusion.export.reference import why_not
    from upfusion.runtime.manifest import manifest_path, read_manifest
    from upfusion.text import load_text

    for graph, checkpoint in ((artifact, reference), (reference, artifact)):
        if graph.suffix != ".onnx" or not manifest_path(graph).is_file():
            continue
        if not _is_checkpoint(checkpoint) or why_not(checkpoint, read_manifest(graph)) is not None:
            continue
        with spinner() as bar:
            bar.add_task("telling ties from arithmetic")
            feature = load_text(text) if text else None
            report = measure(graph, load_checkpoint(checkpoint), feature, pairs, tf32=False)
        return _Ties(
            tied=report.tied,
            flips=report.flips(),
            max_levels=max(pair.numerics.max_levels for pair in report.pairs),
            worst_db=_worst(report, lambda pair: pair.numerics.psnr_db).numerics.psnr_db,
        )
    return None


def _is_checkpoint(path: Path) -> bool:
    from upfusion.runtime.artifact import CHECKPOINT_SUFFIXES

    return path.suffix.lower() in CHECKPOINT_SUFFIXES
