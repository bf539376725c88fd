"""Run the FP32 network over real pairs and write down what an exporter must know."""

from __future__ import annotations

import datetime
import logging
import platform
from collections.abc import Callable, Sequence

import numpy as np
import torch

from upfusion import __version__
from upfusion.calibration.observers import (
    MaskObserver,
    OrderObserver,
    RangeObserver,
    SquareSumObserver,
    watching,
)
from upfusion.calibration.windows import typical_window
from upfusion.checkpoint import Checkpoint
from upfusion.model.decisions import recording
from upfusion.model.margins import order_margins, recording_values
from upfusion.runtime.calibration_file import SAMPLE_SIZE, Calibration, CalibrationPair, DecisionRecord, Sample
from upfusion.runtime.errors import InputError
from upfusion.runtime.files import sha256_of
from upfusion.runtime.images import prepare
from upfusion.runtime.manifest import Source
from upfusion.runtime.pairs import Pair, read_pair
from upfusion.text import TextFeatures

log = logging.getLogger(__name__)

SAMPLES = 8
"""How many crops the file carries."""


def calibrate(
    checkpoint: Checkpoint,
    text: TextFeatures | None,
    pairs: Sequence[Pair],
    target_size: tuple[int, int] = (480, 640),
    done: Callable[[Pair], None] = lambda pair: None,
) -> Calibration:
    """Return the calibration of a network on these pairs.

    Args:
        checkpoint: the trained network.
        text: the prompt's feature; None takes what the checkpoint carries.
        pairs: at least one; each runs at its own size.
        target_size: height and width that sums over pixels are extrapolated to.
        done: called after each pair.

    Raises:
        InputError: no pairs, no text feature, an unreadable pair, or values that are not finite.
    """
    if not pairs:
        raise InputError("no pairs to calibrate on", "give two folders with images of the same names")
    text = text or checkpoint.text
    if text is None:
        raise InputError(
            f"{checkpoint.path} carries no text feature, and the channel order depends on it",
            'make one with: upfusion text "PROMPT" -o text.npz, then pass --text text.npz',
        )
    network = checkpoint.model
    features = torch.from_numpy(text.features)
    ranges, sums = RangeObserver(), SquareSumObserver(target_size)
    orders: dict[str, OrderObserver] = {}
    masks: dict[str, MaskObserver] = {}
    with (
        torch.no_grad(),
        watching(network, ranges, sums),
        recording(network) as decisions,
        recording_values(network) as values,
    ):
        for pair in pairs:
            visible, infrared = prepare(*read_pair(pair))
            sums.image_pixels = visible.shape[2] * visible.shape[3]
            fused = network(torch.from_numpy(visible), torch.from_numpy(infrared), features)
            if not torch.isfinite(fused).all():
                raise InputError(
                    f"pair {pair.name}: the FP32 network gives values that are not finite",
                    "check the checkpoint: upfusion fuse it with another pair",
                )
            for name, decision in decisions.items():
                if name.endswith(".order"):
                    orders.setdefault(name, OrderObserver()).see(values[name], decision)
                else:
                    masks.setdefault(name, MaskObserver()).see(values[name], decision)
            done(pair)
    records = {name: order.record() for name, order in orders.items()}
    records |= {name: mask.record() for name, mask in masks.items()}
    return Calibration(
        source=Source(
            name=checkpoint.path.name,
            sha256=checkpoint.sha256,
            preset=checkpoint.preset,
            config=network.config.to_dict(),
        ),
        text_sha256=text.sha256,
        pairs=tuple(map(_described, pairs)),
        target_size=target_size,
        ranges=ranges.ranges,
        sums=sums.sums,
        decisions=records | _text_records(checkpoint, features),
        samples=tuple(_sampled(pair) for pair in _spread(pairs, SAMPLES)),
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
    )


def _text_records(checkpoint: Checkpoint, features: torch.Tensor) -> dict[str, DecisionRecord]:
    """Return the text permutations as decisions ``tcpmK.permutation``: one margin each, the same for every pair."""
    records = {}
    for level, perturb in enumerate(checkpoint.model.perturbations, start=1):
        with torch.no_grad():
            logits = perturb.text_layers(features)
            permutation = perturb.permute(features)[0]
        margins = order_margins(logits, logits.shape[1])
        records[f"tcpm{level}.permutation"] = DecisionRecord(
            smallest_margin=float(margins.min()),
            p1_margin=float(margins.quantile(0.01)),
            agreement=(1.0,) * len(permutation),
            majority=tuple(permutation.tolist()),
        )
    return records


def _described(pair: Pair) -> CalibrationPair:
    height, width = read_pair(pair)[0].shape[:2]
    return CalibrationPair(
        name=pair.name,
        size=(height, width),
        first_sha256=sha256_of(pair.first),
        second_sha256=sha256_of(pair.second),
    )


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return up to ``count`` pairs, evenly spaced."""
    places = np.unique(np.linspace(0, len(pairs) - 1, count).round().astype(int))
    return [pairs[place] for place in places]


def _sampled(pair: Pair) -> Sample:
    """Return the most typical window of a pair, whole if it is smaller; 16-bit images lose their lower byte."""
    whole = read_pair(pair)
    window = typical_window(whole, SAMPLE_SIZE)
    images = []
    for image in whole:
        part = image[window]
        images.append((part >> 8 if part.dtype == np.uint16 else part).astype(np.uint8))
    return Sample.of(pair.name, images[0], images[1])
