"""``upfusion fuse``: image pairs, folders or videos to fused ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from upfusion.cli.console import check_line, console, print_error, print_json, progress_bar, wrote
from upfusion.cli.stopping import INTERRUPTED
from upfusion.runtime.errors import InputError, UPFusionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from upfusion.runtime import Fuser, HeldRanking
    from upfusion.runtime.video import VideoResult

SOME_FAILED = 1
"""Exit code when pairs failed and the rest was written."""

ALL_FAILED = 2
"""Exit code when nothing was written, as after any other error."""

FAILURES_SHOWN = 10


def fuse(
    visible: Annotated[Path, typer.Argument(help="Visible image (or CT, PET, SPECT, GFP), folder, or video.")],
    infrared: Annotated[Path, typer.Argument(help="Infrared image (or MRI, phase contrast), folder, or video.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="What fuses: a checkpoint, an ONNX file or an engine.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Image file or folder; video file for videos.")],
    color: Annotated[
        Literal["auto", "gray", "ycbcr"],
        typer.Option(
            help="gray: luma, three equal channels in a file, as the authors' script writes it; ycbcr: with the "
            "visible image's colour; auto: ycbcr where it has colour."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, tensorrt (ONNX Runtime's).")] = "auto",
    text: Annotated[Path | None, typer.Option(help="Text feature for a checkpoint.", show_default=False)] = None,
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Videos: rank channels on every Nth frame only; the frames between need --between. "
            "Off by default: every frame is ranked.",
            show_default=False,
        ),
    ] = None,
    between: Annotated[
        Path | None,
        typer.Option(
            help="With --every: what fuses the frames between with the last ranked frame's decisions, exported with "
            "--ranking given; --model then needs --expose-ranks.",
            show_default=False,
        ),
    ] = None,
    contexts: Annotated[
        int,
        typer.Option(min=1, help="Pairs or frames in work at the same time; each needs memory of its own."),
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on stdout.")] = False,
) -> None:
    """Fuse two images, two folders (matched by file name without suffix), or two videos.

    png, jpg, bmp and tif, 8 or 16 bit; both images of a pair have the same size and show the same view. Fused images
    in a folder are PNG. A pair that fails is named and the rest goes on; the exit code is then 1,
    and 2 if none was written.

    Example: upfusion fuse vis/ ir/ -m fusion.onnx -o fused/

    Videos whose rankings hold for ten frames: upfusion fuse visible.mp4 thermal.mp4 -m fusion.onnx -o fused.mp4
    --every 10 --between given.onnx
    """
    from upfusion.cli.artifacts import open_fuser, open_held_ranking
    from upfusion.runtime.folder import fuse_files, output_paths, summary
    from upfusion.runtime.pairs import find_pairs
    from upfusion.runtime.video import is_video

    if is_video(visible) and is_video(infrared):
        _check_ranking(every, between)

        def opened() -> Fuser | HeldRanking:
            if between is not None and every is not None:
                return open_held_ranking(model, between, every, device=device, contexts=contexts)
            return open_fuser(model, device=device, text=text, contexts=contexts)

        _fuse_videos(visible, infrared, model, output, opened, color=color, every=every or 1, json=json)
        return
    if every is not None or between is not None:
        raise InputError("--every and --between are for videos: images are ranked one by one", "leave them out")
    pairs = find_pairs(visible, infrared)
    paths = output_paths(pairs, output)
    with open_fuser(model, device=device, text=text, contexts=contexts) as fuser, progress_bar() as bar:
        task = bar.add_task("fusing", total=len(pairs))
        start = time.perf_counter()
        result = fuse_files(fuser, pairs, paths, color=color, done=lambda name: bar.advance(task))
        seconds = time.perf_counter() - start
    _print_failures(list(result.failed.values()))
    rate = f"{len(result.written)} of {len(pairs)} pairs on {fuser.device} in {seconds:.1f} s"
    check_line(not result.failed, "fuse", rate)
    if result.written:
        wrote(next(iter(result.written.values())) if len(paths) == 1 else output)
    if json:
        print_json({"model": str(model), "device": fuser.device, "seconds": seconds} | summary(result))
    if result.failed:
        raise typer.Exit(SOME_FAILED if result.written else ALL_FAILED)


def _check_ranking(every: int | None, between: Path | None) -> None:
    """Raise unless ``--every`` and ``--between`` come together; ``--every 1`` ranks every frame and needs no other.

    Raises:
        InputError: one lacks the other.
    """
    if between is not None and every is None:
        raise InputError(
            f"--between {between} is for the frames that are not ranked, and without --every all of them are",
            "say how often to rank, as --every 10, or leave --between out",
        )
    if every not in (None, 1) and between is None:
        raise InputError(
            f"--every {every} needs a second artifact, one that takes decisions, for the frames that are not ranked",
            "upfusion export CHECKPOINT -o given.onnx --ranking given, then --between given.onnx; "
            "the one that ranks is exported with --expose-ranks",
        )


def _print_failures(errors: list[UPFusionError]) -> None:
    """Print the first failures; a hint that was just given is not given again."""
    last = ""
    for error in errors[:FAILURES_SHOWN]:
        print_error(error if error.hint != last else type(error)(error.problem))
        last = error.hint
    if len(errors) > FAILURES_SHOWN:
        console.print(f"and {len(errors) - FAILURES_SHOWN} more; --json lists all of them")


def _fuse_videos(
    visible: Path,
    infrared: Path,
    model: Path,
    output: Path,
    opened: Callable[[], Fuser | HeldRanking],
    *,
    color: Literal["auto", "gray", "ycbcr"],
    every: int,
    json: bool,
) -> None:
    """Fuse two videos with a bar that shows frames per second; ``opened`` opens the model."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from upfusion.runtime.video import fuse_video

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]}"),
    ]
    with (
        opened() as fuser,
        Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar,
    ):
        task = bar.add_task("fusing", total=None, fps="")
        checking = bar.add_task("checking the file", total=None, fps="", visible=False)
        start = time.perf_counter()

        def done() -> None:
            bar.advance(task)
            frames = bar.tasks[task].completed
            bar.update(task, fps=f"{frames / (time.perf_counter() - start):.1f} frames/s")

        result = fuse_video(
            fuser,
            visible,
            infrared,
            output,
            color=color,
            started=lambda frames: bar.update(task, total=frames or None),
            done=done,
            checked=lambda: bar.update(checking, advance=1, total=bar.tasks[task].completed, visible=True),
        )
        seconds = time.perf_counter() - start
    _report_video(result, model, fuser.device, output, seconds, every=every, json=json)
    if result.stopped:  # the video is complete up to there
        raise typer.Exit(INTERRUPTED)


def _report_video(
    result: VideoResult, model: Path, device: str, output: Path, seconds: float, *, every: int, json: bool
) -> None:
    """Print what was written."""
    height, width = result.size
    check_line(
        not result.stopped,
        "fuse",
        f"{result.frames} frames of {height}x{width} on {device} in {seconds:.1f} s, "
        f"{result.frames / seconds:.1f} frames/s{f', one in {every} ranked' if every > 1 else ''}"
        f"{', stopped before the end' if result.stopped else ''}",
    )
    if result.left_over:
        console.print(f"{result.left_over} has more frames than the other video; they were left out")
    wrote(output)
    if json:
        print_json(
            {
                "model": str(model),
                "device": device,
                "output": str(output),
                "frames": result.frames,
                "ranked_every": every,
                "frames_per_second": result.frames / seconds,
                "seconds": seconds,
                "stopped": result.stopped,
                "left_over": result.left_over,
            }
        )
