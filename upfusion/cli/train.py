"""``upfusion train``: train a network on pairs of images, on one or many GPUs or on the CPU."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from upfusion.cli.console import check_line, console, print_json, progress_bar, wrote
from upfusion.cli.numbers import not_nan, positive


class RecipeName(enum.StrEnum):
    """What is learned, and how fast."""

    PAPER = "paper"
    AUTHORS_CODE = "authors-code"
    SHIPPED = "shipped"
    REFINE = "refine"


class PrecisionName(enum.StrEnum):
    """What the network computes in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class RankingName(enum.StrEnum):
    """Whether the layers that only rank channels learn."""

    FIXED = "fixed"
    STRAIGHT_THROUGH = "straight-through"


class CorruptName(enum.StrEnum):
    """What an unusable pair does."""

    FAIL = "fail"
    SKIP = "skip"


def train(
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            help="Data set: a folder with {vis,ir} or {a,b}, and train.txt where only a part is for training. "
            "Several: FOLDER@WEIGHT each, to draw them in these shares.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the run.")],
    recipe: Annotated[
        RecipeName,
        typer.Option(help="paper, authors-code, or as the shipped weights began (shipped) and ended (refine)."),
    ] = RecipeName.PAPER,
    preset: Annotated[str, typer.Option(help="Size of the network: base, small or tiny.")] = "base",
    text: Annotated[
        Path | None, typer.Option(help="Text feature (upfusion text), stored with the weights.", show_default=False)
    ] = None,
    stand_in_text: Annotated[
        bool, typer.Option("--stand-in-text", help="A fixed random vector, where CLIP is out of reach.")
    ] = False,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint to continue from instead of fresh weights.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    validate: Annotated[
        Path | None, typer.Option(help="Data set to validate on (its test.txt, if any).", show_default=False)
    ] = None,
    hold_out: Annotated[int, typer.Option(help="Or: training pairs to keep for validation instead.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[PrecisionName, typer.Option(help="bf16 and fp16 autocast; the loss stays fp32.")] = (
        PrecisionName.FP32
    ),
    ranking: Annotated[
        RankingName,
        typer.Option(help="straight-through lets the ranking layers learn; the deployed graph is the same."),
    ] = RankingName.FIXED,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave a part out, to compare: pruning, modulation, perturbation, pruning-attention, "
            "perturbation-attention or convnext.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length in steps instead of the recipe's epochs.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pairs per process, instead of the recipe's.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the crops, instead of the recipe's.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(callback=positive, help="Highest learning rate, instead of the recipe's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the starting weights and the order of the crops.")] = 0,
    corrupt: Annotated[CorruptName, typer.Option(help="An unusable pair ends the run, or is named and skipped.")] = (
        CorruptName.FAIL
    ),
    cache_gb: Annotated[
        float, typer.Option(min=0, callback=not_nan, help="Memory for decoded images, per process.")
    ] = 4.0,
    save_minutes: Annotated[float, typer.Option(min=0, callback=not_nan, help="Time between saved states.")] = 10.0,
    validate_steps: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Train a network; ctrl-C saves the state, and --resume continues as if nothing had happened.

    In the output folder: model.safetensors (the last weights, or their average where the recipe keeps one),
    best.safetensors (best validation), state.pt (to resume), samples/, tensorboard/. On several GPUs:
    torchrun --nproc_per_node=4 -m upfusion.train with the same options.

    Examples:

      upfusion train --data RoadScene --text text.npz --recipe paper -o runs/paper --hold-out 12

      upfusion train --data roadscene@0.62 --data harvard/pet_mri@0.38 --preset tiny --recipe shipped
      --stand-in-text --steps 4000 -o runs/tiny

      upfusion train --data roadscene@0.62 --data harvard/pet_mri@0.38 --preset tiny --recipe refine
      --start runs/tiny/model.safetensors --steps 4000 -o runs/refined
    """
    from upfusion.runtime.files import check_folder
    from upfusion.train.distributed import processes
    from upfusion.train.loop import WEIGHTS, StepReport
    from upfusion.train.run import RunRequest, prepared_run
    from upfusion.train.state import FILE

    check_folder(output)
    request = RunRequest(
        data=tuple(data),
        output=output,
        recipe=recipe.value,
        preset=preset,
        text=text,
        stand_in_text=stand_in_text,
        start=start,
        resume=resume,
        validate=validate,
        hold_out=hold_out,
        precision=precision.value,
        ranking=ranking.value,
        without=tuple(without or ()),
        steps=steps,
        changes={
            name: value
            for name, value in (("epochs", epochs), ("batch", batch), ("crop", crop), ("learning_rate", learning_rate))
            if value is not None
        },
        seed=seed,
        corrupt=corrupt.value,
        cache_gb=cache_gb,
        save_minutes=save_minutes,
        validate_steps=validate_steps,
    )
    with processes(device) as place:
        trainer = prepared_run(request, place)
        with progress_bar() as bar:
            bar.disable = not (place.leads and console.is_terminal)
            task = bar.add_task("training", total=trainer.total_steps, completed=trainer.state.step)

            def report(done: StepReport) -> None:
                description = f"loss {done.loss:.4f}, lr {done.learning_rate:.1e}"
                bar.update(task, completed=done.step, description=description)

            outcome = trainer.run(report)
        if not place.leads:
            return
        for name, reason in outcome.skipped.items():
            check_line(False, "skipped", f"{name}: {reason}")
        for name, value in outcome.metrics.items():
            check_line(True, name, f"{value:.4f} on {len(trainer.held_out)} held-out pairs")
        check_line(outcome.finished, "steps", f"{outcome.steps} of {trainer.total_steps}")
        again = "the same command with --resume"
        if without:
            wrote(output / FILE, next_command="" if outcome.finished else again)
        else:
            export = f"upfusion export {output / WEIGHTS} -o fusion.onnx"
            wrote(output / WEIGHTS, output / FILE, next_command=export if outcome.finished else again)
        if json:
            print_json(
                {
                    "steps": outcome.steps,
                    "finished": outcome.finished,
                    "metrics": outcome.metrics,
                    "skipped": outcome.skipped,
                    "weights": None if without else str(output / WEIGHTS),
                }
            )
