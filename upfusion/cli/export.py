"""``upfusion export``: a checkpoint as an ONNX graph that was compared with the network."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from upfusion.cli.console import check_line, spinner, wrote
from upfusion.cli.numbers import decibels
from upfusion.cli.sizes import parse_sizes


def export(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' .pth, or a .safetensors of ours.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    text: Annotated[
        Path | None,
        typer.Option(help="Text feature (upfusion text); default: the one in the checkpoint.", show_default=False),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH, or a range MIN:OPT:MAX such as 256x256:480x640:1024x1280."),
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Take any size from 64x64 to 1024x1280, tuned for 480x640.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Pairs per call; channels are ranked per image.")] = 1,
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option(help="fp16 keeps statistics and rankings in fp32.")
    ] = "fp32",
    io: Annotated[
        Literal["image", "tensor"],
        typer.Option(help="image: uint8 images as a camera gives them, all else inside; tensor: padded float planes."),
    ] = "image",
    channels: Annotated[
        Literal["rgb", "bgr"] | None,
        typer.Option(help="Image graphs: colour order of the visible image; default: rgb.", show_default=False),
    ] = None,
    color: Annotated[
        Literal["gray", "ycbcr"] | None,
        typer.Option(help="Image graphs: return the luma, or (default) the colours too.", show_default=False),
    ] = None,
    target: Annotated[
        Literal["tensorrt", "cpu"], typer.Option(help="Which exact rewrites: those that pay on a GPU, or on a CPU.")
    ] = "tensorrt",
    lean: Annotated[
        bool, typer.Option("--lean", help="Less memory, more passes: groups of channels and strips of rows.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No rewrite: the network as it was trained.")] = False,
    without_rewrite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave out this rewrite; may be repeated.", show_default=False),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="What upfusion calibrate wrote; fp16 follows it.", show_default=False),
    ] = None,
    ranking: Annotated[
        Literal["dynamic", "frozen", "given"],
        typer.Option(
            help="frozen: the calibration's majority decisions are constants; small, fast, not exact. given: decisions "
            "are inputs, for the video frames that another graph does not rank (upfusion fuse --every)."
        ),
    ] = "dynamic",
    expose_ranks: Annotated[
        bool, typer.Option("--expose-ranks", help="Add the ranking decisions as outputs, for verify and --every.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON on stdout.")] = False,
) -> None:
    """Write the network as an ONNX graph with the prompt baked in, checked and compared with PyTorch.

    The network is rewritten by exact identities into the form that its target runs best (docstrings of
    upfusion/export/rewrites); the text layers are gone. A graph that differs from the network is not written. The
    manifest beside the file (and inside it) says what it was made from. 16-bit images need --io tensor.

    Examples:

      upfusion export model.safetensors -o fusion.onnx --size 480x640

      upfusion export UPFusion.pth --text text.npz -o fusion.onnx --dynamic --precision fp16

      upfusion export model.safetensors -o camera.onnx --channels bgr --batch 2

      upfusion export model.safetensors -o plain.onnx --plain --io tensor

      upfusion export model.safetensors -o given.onnx --ranking given
    """
    from upfusion.checkpoint import load_checkpoint
    from upfusion.export.onnx_export import DYNAMIC_SIZES, ExportOptions, export_onnx
    from upfusion.export.rewrites import chosen_rewrites
    from upfusion.runtime.errors import InputError
    from upfusion.runtime.files import check_output
    from upfusion.text import load_text

    if size and dynamic:
        raise InputError("--size and --dynamic exclude each other", "give a range instead: --size MIN:OPT:MAX")
    if not size and not dynamic:
        size = "480x640"
    if io == "tensor" and (channels or color):
        raise InputError("--channels and --color are for --io image", "choose the colour when you fuse")
    options = ExportOptions(
        precision=precision,
        sizes=parse_sizes(size) if size else DYNAMIC_SIZES,
        batch=batch,
        io=io,
        channels=channels or "rgb",
        color=color or "ycbcr",
        target=target,
        rewrites=chosen_rewrites(target, plain=plain, lean=lean, without=without_rewrite or ()),
        expose_ranks=expose_ranks,
        calibration=calibration,
        ranking=ranking,
    )
    check_output(output, (".onnx",))
    start = time.perf_counter()
    with spinner() as bar:
        task = bar.add_task("reading the checkpoint")
        loaded = load_checkpoint(checkpoint)
        features = load_text(text) if text else None
        manifest = export_onnx(loaded, output, features, options, step=lambda what: bar.update(task, description=what))
    for note in manifest.notes:
        check_line(True, "precision", note)
    if price := manifest.calibration.get("frozen_price"):
        worst = min(price, key=lambda pair: math.inf if pair["psnr_db"] is None else pair["psnr_db"])
        quality = decibels(worst["psnr_db"])
        check_line(True, "frozen", f"against dynamic ranking on {len(price)} crops, worst: {worst['pair']}, {quality}")
    gaps = manifest.text.smallest_gaps
    check_line(True, "text", f"order fixed; smallest gap of its logits {min(gaps.values()):.1e}")
    check_line(True, "rewrites", "none" if plain else f"{len(manifest.rewrites)} applied, for {target}")
    parity = manifest.parity
    check_line(
        True,
        "compare",
        f"max |Δ| {parity['max_difference']:.1e}, mean {parity['mean_difference']:.1e} against PyTorch in fp32; "
        + (
            f"{parity['decisions_moved']:.2%} of the decisions moved"
            if "decisions_moved" in parity
            else f"its {len(manifest.contract.decision_inputs)} decisions handed in"
        ),
    )
    megabytes = output.stat().st_size / 1e6
    wrote(
        f"{output} ({megabytes:.1f} MB, {time.perf_counter() - start:.0f} s) and {output.name}.json",
        next_command=f"upfusion build {output} -o {output.with_suffix('.engine')}",
    )
    if json:
        print(manifest.to_json())
