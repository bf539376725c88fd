"""``upfusion verify``: prove that two artifacts make the same image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from upfusion.cli.console import check_line, console, print_json, progress_bar

DIFFERENT = 1
"""Exit code when the artifacts differ by more than the tolerance."""


def verify(
    artifact: Annotated[Path, typer.Argument(help="The artifact under test: checkpoint, ONNX or engine.")],
    reference: Annotated[Path, typer.Argument(help="What it is compared with: checkpoint, ONNX or engine.")],
    data: Annotated[
        tuple[Path, Path], typer.Option(metavar="VIS IR", help="Two image files, or two folders matched by name.")
    ],
    tolerance: Annotated[float, typer.Option(help="Largest difference allowed, in 8-bit levels.")] = 1.0,
    psnr: Annotated[
        float | None, typer.Option(help="Judge by this PSNR in dB instead (worst pair).", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first N pairs only.", show_default=False)] = None,
    text: Annotated[Path | None, typer.Option(help="Text feature for checkpoints.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout.")] = False,
) -> None:
    """Fuse the same pairs with two artifacts and compare the 8-bit images.

    Exit code 0 when they agree, 1 when they differ by more than the tolerance, 2 on errors.

    Example: upfusion verify fusion.onnx model.safetensors --data vis/ ir/
    """
    from rich.table import Table

    from upfusion.cli.artifacts import open_fuser
    from upfusion.export.verify import compare_artifacts
    from upfusion.runtime.pairs import find_pairs

    pairs = find_pairs(*data)[:limit]
    with open_fuser(artifact, text=text) as first, open_fuser(reference, text=text) as second, progress_bar() as bar:
        task = bar.add_task("comparing", total=len(pairs))
        result = compare_artifacts(first, second, pairs, done=lambda pair: bar.advance(task))
    worst = result.worst
    good = result.max_levels <= tolerance if psnr is None else worst.psnr_db >= psnr
    if json:
        limits = {"tolerance_levels": tolerance} if psnr is None else {"psnr_db": psnr}
        print_json(
            {"artifact": str(artifact), "reference": str(reference), "agree": good, "limits": limits} | result.to_dict()
        )
    else:
        table = Table("pair", "max |Δ|", "mean |Δ|", "PSNR dB", "SSIM", "pixels off")
        for row in sorted(result.pairs, key=lambda pair: pair.psnr_db)[:10]:
            decibels = "equal" if math.isinf(row.psnr_db) else f"{row.psnr_db:.2f}"
            table.add_row(
                row.name,
                str(row.max_levels),
                f"{row.mean_levels:.4f}",
                decibels,
                f"{row.ssim:.6f}",
                f"{row.share_off:.3%}",
            )
        console.print(table)
        if len(result.pairs) > 10:
            console.print(f"the worst 10 of {len(result.pairs)} pairs")
    asked = f"limit {tolerance:g} levels" if psnr is None else f"limit {psnr:g} dB"
    decibels = "equal" if math.isinf(worst.psnr_db) else f"{worst.psnr_db:.2f} dB"
    check_line(
        good,
        "verify",
        f"max |Δ| {result.max_levels} levels, worst pair {worst.name}: {decibels} ({asked}), {len(result.pairs)} pairs",
    )
    if not good:
        raise typer.Exit(DIFFERENT)
