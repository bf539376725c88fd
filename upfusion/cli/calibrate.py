"""``upfusion calibrate``: what real pairs show of a network's ranges and decisions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from upfusion.cli.console import check_line, console, print_json, progress_bar, wrote


def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' .pth, or a .safetensors of ours.")],
    data: Annotated[
        tuple[Path, Path], typer.Option(metavar="VIS IR", help="Two image files, or two folders matched by name.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The calibration file to write.")] = Path(
        "calibration.json"
    ),
    size: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH that the engine will run at; sums over pixels are extrapolated to it.")
    ] = "480x640",
    text: Annotated[
        Path | None,
        typer.Option(help="Text feature (upfusion text); default: the one in the checkpoint.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N pairs only.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the calibration as JSON on stdout.")] = False,
) -> None:
    """Run the FP32 network over real pairs and record what a half-precision export must know.

    Ranges of all maps, sums that could overflow at the target size, the margin of every decision (channel orders,
    attention masks, the text's permutation), and how steady each decision is over the pairs. The file also carries a
    few small crops of the pairs, on which the exporter fits its rounding; give pairs that you may share with it.

    Examples:

      upfusion calibrate model.safetensors --data vis/ ir/ -o calibration.json

      upfusion export model.safetensors -o fusion.onnx --precision fp16 --calibration calibration.json
    """
    import dataclasses

    from upfusion.calibration.calibrate import calibrate as run
    from upfusion.calibration.table import decision_table, range_table, sum_table
    from upfusion.checkpoint import load_checkpoint
    from upfusion.cli.sizes import parse_size
    from upfusion.runtime.files import check_output
    from upfusion.runtime.pairs import find_pairs
    from upfusion.text import load_text

    check_output(output, (".json",))
    target = parse_size(size)
    pairs = find_pairs(*data)[:limit]
    features = load_text(text) if text else None
    start = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task("calibrating", total=len(pairs))
        loaded = load_checkpoint(checkpoint)
        result = run(loaded, features, pairs, target, done=lambda pair: bar.advance(task))
    result.write(output)
    if json:
        print_json(dataclasses.asdict(result))
    else:
        for table in (range_table(result), sum_table(result), decision_table(result)):
            console.print(table)
    closest = min(result.decisions.items(), key=lambda item: item[1].smallest_margin)
    check_line(True, "pairs", f"{len(pairs)} pairs, {time.perf_counter() - start:.0f} s")
    margin = closest[1].smallest_margin
    check_line(True, "margins", f"closest decision: {closest[0]}, {f'{margin:.1e}' if margin > 0 else 'an exact tie'}")
    wrote(
        output,
        next_command=f"upfusion export {checkpoint} -o fusion.onnx --size {size} --precision fp16 "
        f"--calibration {output}",
    )
