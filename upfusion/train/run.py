"""From what a user asks for to a trainer that is ready to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from upfusion.checkpoint import load_checkpoint
from upfusion.config import preset_name
from upfusion.evaluation.datasets import select_pairs
from upfusion.model import FusionNetwork
from upfusion.runtime.errors import InputError
from upfusion.runtime.pairs import Pair, read_pair
from upfusion.text import TextFeatures, load_text, stand_in_text
from upfusion.train.data import Crops, PairReader, Shares
from upfusion.train.distributed import Processes
from upfusion.train.loop import Precision, Trainer, TrainOptions
from upfusion.train.ranking import Ranking
from upfusion.train.recipes import recipe_named


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run as it is typed on the command line."""

    data: tuple[str, ...]
    """Folders, each with ``@WEIGHT`` or none of them."""
    output: Path
    recipe: str = "paper"
    preset: str = "base"
    text: Path | None = None
    stand_in_text: bool = False
    start: Path | None = None
    resume: bool = False
    validate: Path | None = None
    hold_out: int = 0
    precision: Precision = "fp32"
    ranking: Ranking = "fixed"
    without: tuple[str, ...] = ()
    steps: int | None = None
    changes: Mapping[str, float] = field(default_factory=dict)
    """Fields of the recipe with other values."""
    seed: int = 0
    corrupt: Literal["skip", "fail"] = "fail"
    cache_gb: float = 4.0
    save_minutes: float = 10.0
    validate_steps: int = 1000


def prepared_run(request: RunRequest, processes: Processes) -> Trainer:
    """Return the trainer of a request: data found, held-out pairs read, network built or resumed.

    Raises:
        InputError: an option or a data set cannot be used.
        CheckpointError: the weights to start from, or the state to resume, cannot be used.
    """
    recipe = dataclasses.replace(recipe_named(request.recipe), **request.changes)  # type: ignore[arg-type]
    start, text = _start(request)
    sets, weights = _data_sets(request.data)
    held_out = _held_out(request, sets)
    pairs = [pair for pairs in sets for pair in pairs]
    shares = Shares(sizes=tuple(map(len, sets)), weights=weights) if weights else None
    reader = PairReader(pairs, corrupt=request.corrupt, cache_bytes=int(request.cache_gb * (1 << 30)))
    options = TrainOptions(
        output=request.output,
        preset=request.preset,
        seed=request.seed,
        precision=request.precision,
        ranking=request.ranking,
        without=request.without,
        resume=request.resume,
        steps=request.steps,
        save_minutes=request.save_minutes,
        validate_steps=request.validate_steps,
    )
    provenance: dict[str, object] = {
        "recipe_name": request.recipe + ("" if not request.changes else " with changes"),
        "data": [Path(name.rpartition("@")[0] or name).name for name in request.data],
        "pairs": len(pairs),
        "started_from": request.start.name if request.start else None,
    }
    return Trainer(
        recipe,
        options,
        Crops(reader, recipe, seed=request.seed, shares=shares),
        text,
        processes,
        held_out=[read_pair(pair) for pair in held_out] if processes.leads else (),
        start=start,
        provenance=provenance,
    )


def _start(request: RunRequest) -> tuple[FusionNetwork | None, TextFeatures]:
    """Return the weights to start from, if any, and the text feature."""
    loaded = load_checkpoint(request.start) if request.start else None
    if loaded is not None and loaded.preset != request.preset:
        raise InputError(
            f"{request.start} holds a network of the preset {preset_name(loaded.model.config)}, not {request.preset}",
            f"use --preset {loaded.preset}",
        )
    if request.text and request.stand_in_text:
        raise InputError("--text and --stand-in-text exclude each other", "give one of them")
    if request.text:
        text = load_text(request.text)
    elif request.stand_in_text:
        text = stand_in_text()
    elif loaded is not None and loaded.text is not None:
        text = loaded.text
    else:
        raise InputError(
            "the channel order depends on a text feature, and none was given",
            'make one with: upfusion text "PROMPT" -o text.npz, then pass --text text.npz; '
            "where CLIP is out of reach, --stand-in-text takes a fixed random vector",
        )
    return (loaded.model if loaded else None), text


def _data_sets(names: tuple[str, ...]) -> tuple[list[list[Pair]], tuple[float, ...]]:
    """Return the pairs of each data set, and the weights if they have any."""
    sets, weights = [], []
    for name in names:
        folder, at, weight = name.rpartition("@")
        if at and not Path(name).is_dir():
            try:
                weights.append(float(weight))
            except ValueError as error:
                raise InputError(f"--data {name}: {weight!r} is no weight", "write FOLDER@0.5, or FOLDER") from error
            if not (np.isfinite(weights[-1]) and weights[-1] > 0):
                raise InputError(f"--data {name}: weights must be above 0", "leave the data set out instead")
        else:
            folder = name
        sets.append(list(select_pairs(folder, "train").pairs))
    if weights and len(weights) != len(sets):
        raise InputError("some data sets have a weight and some have none", "write FOLDER@WEIGHT for all, or for none")
    return sets, tuple(weights)


def _held_out(request: RunRequest, sets: list[list[Pair]]) -> list[Pair]:
    """Return the pairs to validate on; pairs held out of the training data are taken off the first data set."""
    if request.validate and request.hold_out:
        raise InputError("--validate and --hold-out exclude each other", "give one of them")
    if request.validate:
        return list(select_pairs(request.validate, "test").pairs)
    if not request.hold_out:
        return []
    first = sets[0]
    if not 0 < request.hold_out < len(first):
        raise InputError(
            f"{request.hold_out} of the {len(first)} pairs of {request.data[0]} cannot be held out", "hold out fewer"
        )
    chosen = np.random.Generator(np.random.PCG64((request.seed, 2))).choice(len(first), request.hold_out, replace=False)
    held_out = [first[index] for index in sorted(chosen)]
    sets[0] = [pair for index, pair in enumerate(first) if index not in set(chosen.tolist())]
    return held_out
