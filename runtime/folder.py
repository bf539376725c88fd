"""Fuse pairs of files into a folder: one failing pair is named and the rest goes on."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from upfusion.runtime.errors import InputError, UPFusionError
from upfusion.runtime.files import check_output, create_folder
from upfusion.runtime.fuser import Fuser
from upfusion.runtime.graph_images import Color
from upfusion.runtime.images import SUFFIXES, write_image
from upfusion.runtime.pairs import Pair

_WRITERS = 2
_UNWRITTEN = 4
"""Fused images that wait for a writer; more would only fill memory."""


@dataclass(slots=True, kw_only=True)
class FolderResult:
    """What was written, and what failed."""

    written: dict[str, Path] = field(default_factory=dict)
    """Pair name -> file."""
    failed: dict[str, UPFusionError] = field(default_factory=dict)
    """Pair name -> why."""


def output_paths(pairs: Sequence[Pair], output: Path) -> dict[str, Path]:
    """Return where the fused image of each pair goes: ``output`` itself for one pair and a file name, else into it.

    Images in a folder are PNG, since nothing is lost by it. The folder is created.

    Raises:
        InputError: the output is an input, or a file where a folder is needed.
    """
    if len(pairs) == 1 and output.suffix.lower() in SUFFIXES and not output.is_dir():
        check_output(output)
        paths = {pairs[0].name: output}
    elif len(pairs) == 1 and output.suffix and not output.is_dir():
        raise InputError(
            f"{output}: cannot write {output.suffix}",
            f"use {', '.join(SUFFIXES)}; if a folder is meant, create {output} first",
        )
    else:
        if output.is_file() or output.suffix.lower() in SUFFIXES:
            raise InputError(f"{output} is a file, and {len(pairs)} images need a folder", "name a folder with -o")
        create_folder(output)
        paths = {pair.name: output / f"{pair.name}.png" for pair in pairs}
    inputs = {path.resolve() for pair in pairs for path in (pair.first, pair.second)}
    for path in paths.values():
        if path.resolve() in inputs:
            raise InputError(f"{path} is one of the inputs and would be overwritten", "choose another output")
    return paths


def fuse_files(
    fuser: Fuser,
    pairs: Iterable[Pair],
    paths: Mapping[str, Path],
    *,
    color: Color = "auto",
    done: Callable[[str], None] = lambda name: None,
) -> FolderResult:
    """Fuse every pair and write it to its path; ``done`` is called with the pair's name after each.

    ``color="gray"`` writes the luma in three equal channels, the files that the authors' script writes.

    Raises:
        InputError: an image could not be written; the files written so far stay.
    """
    result = FolderResult()
    provenance = json.dumps(fuser.provenance(), ensure_ascii=False)
    waiting: deque[tuple[str, Future[None]]] = deque()

    def written() -> None:
        name, future = waiting.popleft()
        future.result()
        result.written[name] = paths[name]
        done(name)

    with ThreadPoolExecutor(_WRITERS, "upfusion-write") as writers:
        for outcome in fuser.stream(pairs, color):
            pair = outcome.item
            assert isinstance(pair, Pair)
            if outcome.error is not None:
                result.failed[pair.name] = outcome.error
                done(pair.name)
                continue
            image = outcome.result()
            if color == "gray":
                image = np.repeat(image[..., None], 3, axis=2)
            waiting.append((pair.name, writers.submit(write_image, paths[pair.name], image, provenance)))
            if len(waiting) > _UNWRITTEN:
                written()
        while waiting:
            written()
    return result


def summary(result: FolderResult) -> dict[str, Any]:
    """Return the result as plain values, for JSON."""
    return {
        "written": {name: str(path) for name, path in result.written.items()},
        "failed": {name: {"problem": error.problem, "hint": error.hint} for name, error in result.failed.items()},
    }
