"""Ranking decisions on their way from one artifact to another: which two go together, and what one alone is told.

A graph exported with ``--expose-ranks`` gives its decisions as outputs; one exported with ``--ranking given`` takes
them as inputs of the same names, shapes and types. Together they are a few ten thousand bytes, so they travel through
host memory like the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upfusion.runtime.errors import ArtifactError
from upfusion.runtime.manifest import Manifest

Decisions = Mapping[str, npt.NDArray[Any]]
"""By name (``scpm.order``, ``tcpm1.keep``, ...), each with a leading batch axis."""

BOTH_GRAPHS = (
    "export both from one checkpoint with equal options but these: upfusion export CHECKPOINT -o fusion.onnx "
    "--expose-ranks, and upfusion export CHECKPOINT -o given.onnx --ranking given"
)


def fill_natural(decision: npt.NDArray[Any]) -> None:
    """Write a decision that any network can take: channels in natural order, or every attention entry kept."""
    decision[...] = True if decision.dtype.kind == "b" else np.arange(decision.shape[-1])


def decides_nothing(path: Path) -> ArtifactError:
    """Return what to tell who opens an artifact alone that takes another one's decisions."""
    return ArtifactError(
        f"{path} was exported with --ranking given: it takes the decisions of another artifact and has none of its own",
        f"fuse videos with both: -m RANKER --between {path} --every 10; judge it: upfusion accept {path} "
        "--data VISIBLE INFRARED",
    )


def check_together(ranker: Path, ranking: Manifest, between: Path, given: Manifest) -> None:
    """Raise unless ``between`` takes what ``ranker`` decides.

    Raises:
        ArtifactError: one of them gives or takes no decisions, or they are of different networks, prompts or images.
    """
    if not ranking.contract.decision_outputs:
        what = "takes decisions" if ranking.contract.decision_inputs else f"ranks ({ranking.ranking})"
        raise ArtifactError(
            f"{ranker} {what} and does not show any, so {between} has nothing to work with",
            "export it again with --expose-ranks and --ranking dynamic",
        )
    if not given.contract.decision_inputs:
        raise ArtifactError(
            f"{between} takes no decisions: its ranking is {given.ranking}",
            "the graph for the frames between is another one: upfusion export CHECKPOINT -o given.onnx --ranking given",
        )
    for (name, one, shown), (_, other, also_shown) in zip(_facts(ranking), _facts(given), strict=True):
        if one != other:
            raise ArtifactError(
                f"{between} does not go with {ranker}: {name} is {also_shown} here, {shown} there", BOTH_GRAPHS
            )


def _facts(manifest: Manifest) -> list[tuple[str, object, str]]:
    """Return what must be equal in two artifacts that share decisions: name, value, and the value in words.

    What other facts follow from comes first.
    """
    contract = manifest.contract
    decisions = contract.decision_inputs or contract.decision_outputs
    source, sizes = manifest.source, contract.sizes
    range_of_sizes = " to ".join(f"{height}x{width}" for height, width in (sizes.minimum, sizes.maximum))
    return [
        ("the checkpoint", source.sha256, f"{source.name} ({source.sha256[:12]}…)"),
        ("the prompt", manifest.text.permutations, f"{manifest.text.prompt!r:.60} ({manifest.text.encoder})"),
        ("--io", contract.io, contract.io),
        ("the order of colours", contract.channels, contract.channels),
        ("the result", contract.color, contract.color),
        ("the batch", contract.batch, str(contract.batch)),
        ("the size", (sizes.minimum, sizes.maximum), range_of_sizes),
        ("the set of decisions", decisions, ", ".join(f"{spec.name} {list(spec.shape)}" for spec in decisions)),
    ]
