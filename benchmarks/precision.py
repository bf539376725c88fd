"""FP16 with and without a calibration against FP32: numerics, decisions, both together, beside TF32's flips.

python -m benchmarks.precision [--cases shipped full full-ranks] [--size whole | 128x160] [--pairs 3 | all]
    [--data msrs ...] [--stress 480x640 ...] [--forms calibrated] [--also "gfp_pc 001" ...]

``full``, ``full-ranks``, ``reduced`` and ``reduced-ranks`` are the golden recipes of ../shared; ``shipped`` are the
tiny weights of this package. Measured on test pairs of ../shared/data, whole or their centres. The graphs are the
exporter's own; half precision is emulated edge by edge on the CPU (``export/accuracy/half_graph.py``), not run on a
GPU. The calibration uses RoadScene, LLVIP and Harvard training pairs, none of them in a test set. ``--also`` names
test pairs of ``--data`` that join it and are not measured then: GFP and phase contrast have no training pairs. Each
pair is added to benchmarks/results/precision.json when it is done; what is there already is not measured again, so a
run that was stopped goes on, and ``--afresh`` forgets what the named cases have. Several runs may add to one result
file. A run on one core is 1.5 times as fast with ``OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive taskset -c 0`` in front as
with one thread: from two threads on PyTorch takes oneDNN for pointwise convolutions.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import onnx

from benchmarks.circumstances import circumstances
from benchmarks.golden import ROOT, SHARED, golden_checkpoint
from upfusion.bench.report import write_record
from upfusion.calibration.calibrate import calibrate
from upfusion.checkpoint import load_checkpoint
from upfusion.cli.memory import keep_freed_memory
from upfusion.cli.sizes import parse_size
from upfusion.evaluation.datasets import select_pairs
from upfusion.export.accuracy.flips import Flips
from upfusion.export.accuracy.measure import EmulatedBackend, PairAccuracy, Reference, compared, truth_of
from upfusion.export.deploy import fix_text
from upfusion.export.onnx_export import ExportOptions, export_onnx
from upfusion.model.decisions import decision_points
from upfusion.runtime.fuser import Fuser
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import SizeRange, read_manifest
from upfusion.runtime.pairs import Pair, read_pair
from upfusion.weights import TINY

RESULT = ROOT / "benchmarks" / "results" / "precision.json"
FORMS = ("nearest", "calibrated")
SIZES = SizeRange(minimum=(64, 64), optimum=(96, 128), maximum=(1024, 1280))
SETS = (
    "msrs", "roadscene", "llvip", "harvard/pet_mri", "harvard/ct_mri", "harvard/spect_mri", "tno", "m3fd", "gfp_pc",
)  # fmt: skip
"""Folders of ../shared/data."""
CALIBRATION_SETS = {"roadscene": 3, "llvip": 3, "harvard/pet_mri": 1, "harvard/ct_mri": 1}
"""How many training pairs of each set: eight, as many as a calibration keeps crops of."""


def pairs_of(name: str, split: Literal["train", "test"], count: int | None) -> list[Pair]:
    """Return evenly spaced pairs of one data set's split, or all of them, named after the set."""
    found = select_pairs(SHARED / "data" / name, split).pairs
    places = np.unique(np.linspace(0, len(found) - 1, count or len(found)).round().astype(int))
    return [Pair(name=f"{name} {found[i].name}", first=found[i].first, second=found[i].second) for i in places]


def cropped(pairs: Sequence[Pair], size: tuple[int, int] | None, folder: Path) -> list[Pair]:
    """Write the centre of each pair and return the new pairs; without a size, the pairs themselves."""
    if size is None:
        return list(pairs)
    folder.mkdir(parents=True)
    made = []
    for index, pair in enumerate(pairs):
        paths = folder / f"{index}_first.png", folder / f"{index}_second.png"
        for image, path in zip(read_pair(pair), paths, strict=True):
            top, left = (max(0, side - wanted) // 2 for side, wanted in zip(image.shape, size, strict=False))
            write_image(path, np.ascontiguousarray(image[top : top + size[0], left : left + size[1]]))
        made.append(Pair(name=pair.name, first=paths[0], second=paths[1]))
    return made


def stress_pairs(folder: Path, size: tuple[int, int]) -> list[Pair]:
    """Write images that are hard on half: flat, empty but for a pixel, 16 bits stretched from a few levels, noise."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(5)
    black = np.zeros(size, np.uint8)
    pixel = black.copy()
    pixel[size[0] // 2, size[1] // 2] = 255
    ramp = np.linspace(31000, 31900, black.size).reshape(black.shape)
    planes = {
        "black": black,
        "white": np.full_like(black, 255),
        "one pixel": pixel,
        "noise": generator.integers(0, 256, black.shape, np.uint8),
        "stretched 16 bit": np.rint((np.floor(ramp) - 31000) * (65535 / 900)).astype(np.uint16),
    }
    made = []
    for name, plane in planes.items():
        path = folder / f"{name}.png"
        write_image(path, plane.astype(np.uint8)) if plane.dtype == np.uint8 else cv2.imwrite(str(path), plane)
        made.append(Pair(name=f"stress {name} {size[0]}x{size[1]}", first=path, second=path))
    return made


def flips(found: dict[str, Flips]) -> dict[str, Any]:
    """Return what moved, by site."""
    return {
        name: {"moved": flip.moved, "at_ties": flip.tied, "of": flip.of, "largest_margin": flip.margins[0]}
        for name, flip in found.items()
        if flip.moved
    }


def figures(pair: PairAccuracy, backend: EmulatedBackend) -> dict[str, Any]:
    """Return one form's figures on one pair."""
    largest = max(backend.largest, key=lambda site: backend.largest[site])
    return {
        "numerics": {name: getattr(pair.numerics, name) for name in pair.numerics.__slots__},
        "together": {name: getattr(pair.together, name) for name in pair.together.__slots__},
        "flips": sum(flip.moved - flip.tied for flip in pair.decisions.values()),
        "flips_at_ties": sum(flip.tied for flip in pair.decisions.values()),
        "decisions": flips(dict(pair.decisions)),
        "half_edges": len(backend.largest),
        "largest_value": backend.largest[largest],
        "largest_edge": largest,
    }


class Case:
    """One network, exported in every form."""

    def __init__(
        self, name: str, size: tuple[int, int] | None, forms: Sequence[str], also: Sequence[Pair], folder: Path
    ) -> None:
        """Calibrate, on the pairs of ``also``, too, and export."""
        self.checkpoint = load_checkpoint(TINY) if name == "shipped" else golden_checkpoint(name, folder)
        assert self.checkpoint.text is not None
        self.reference = Reference(fix_text(self.checkpoint.model, self.checkpoint.text)[0])
        usual = [pair for member, count in CALIBRATION_SETS.items() for pair in pairs_of(member, "train", count)]
        real = [*usual, *also]
        start = time.process_time()
        saved = folder / "calibration.json"
        calibrate(self.checkpoint, None, cropped(real, size, folder / "train"), size or (480, 640)).write(saved)
        self.seconds = {"calibrate": round(time.process_time() - start, 1)}
        self.paths = {}
        for form in forms:
            start = time.process_time()
            self.paths[form] = folder / f"{form}.onnx"
            calibration = saved if form == "calibrated" else None
            options = ExportOptions(precision="fp16", sizes=SIZES, calibration=calibration)
            export_onnx(self.checkpoint, self.paths[form], None, options)
            self.seconds[f"export {form}"] = round(time.process_time() - start, 1)
        points = list(decision_points(self.reference.deploy.network))
        self.backends = {form: EmulatedBackend(onnx.load(path), ["fused"], points) for form, path in self.paths.items()}

    def measured(self, pair: Pair) -> dict[str, Any]:
        """Return all forms' figures on one pair."""
        truth = truth_of(pair.name, read_pair(pair), self.reference, tf32=True)
        assert truth.tf32 is not None
        record: dict[str, Any] = {"size": list(truth.images[0].shape[:2])}
        for form, backend in self.backends.items():
            backend.forget_extremes()
            fuse = Fuser(backend, read_manifest(self.paths[form]).contract)
            found = compared(fuse(*truth.images, color="gray"), truth, self.reference, backend.decisions)
            record[form] = figures(found, backend)
        assert found.tf32_together is not None
        record["tf32"] = {
            "together": {name: getattr(found.tf32_together, name) for name in found.tf32_together.__slots__},
            "flips": sum(flip.moved - flip.tied for flip in truth.tf32.values()),
            "flips_at_ties": sum(flip.tied for flip in truth.tf32.values()),
            "decisions": flips(dict(truth.tf32)),
        }
        return record


def shown_db(found: dict[str, Any]) -> str:
    """Return a PSNR for the log."""
    return "equal" if found["psnr_db"] is None else f"{found['psnr_db']:.2f} dB"


def known(result: Path) -> dict[str, Any]:
    """Return what was measured before."""
    record: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
    return record


def add(result: Path, case: str, pair: str, figures: dict[str, Any], seconds: dict[str, float]) -> None:
    """Put one pair's figures into the result file, which other runs may be adding to."""
    result.parent.mkdir(exist_ok=True)
    folder = os.open(result.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _add(result, case, pair, figures, seconds)
    finally:
        os.close(folder)


def _add(result: Path, case: str, pair: str, figures: dict[str, Any], seconds: dict[str, float]) -> None:
    record = known(result)
    entry = record.setdefault(case, {"pairs": {}})
    made = circumstances("precision")
    commands = entry.setdefault("commands", [])
    if (command := made.pop("command")) not in commands:
        commands.append(command)
    entry |= {
        **made,
        "emulated": "half precision on a CPU, every edge rounded; not run on a GPU",
        "cpu_seconds": seconds,
    }
    entry["pairs"][pair] = figures
    write_record(record, result)


def measure_case(
    name: str,
    key: str,
    pairs: Sequence[Pair],
    size: tuple[int, int] | None,
    also: Sequence[Pair],
    arguments: argparse.Namespace,
    folder: Path,
) -> None:
    """Export one network, and add its figures on each pair to the result file; nothing of it stays in memory."""
    case = Case(name, size, arguments.forms, also, folder)
    for pair in cropped(pairs, size, folder / "test"):
        found = case.measured(pair)
        add(arguments.result, key, pair.name, found, case.seconds)
        shown = " ".join(
            f"{form}: {shown_db(found[form]['numerics'])} numerics, "
            f"{shown_db(found[form]['together'])} both, {found[form]['flips']} flips;"
            for form in arguments.forms
        )
        tf32 = found["tf32"]
        print(f"{key} {pair.name} {shown} TF32: {shown_db(tf32['together'])}, {tf32['flips']} flips", flush=True)


def main() -> None:
    """Measure what is not in the result file yet."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["shipped", "full", "full-ranks"])
    parser.add_argument("--size", default="whole", help="HEIGHTxWIDTH of centre crops, or whole")
    parser.add_argument("--pairs", default="3", help="how many test pairs of each data set, or all")
    parser.add_argument("--stress", nargs="*", default=[], help="HEIGHTxWIDTH of drawn images that are hard on half")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--afresh", action="store_true", help="measure again what the result file has of these cases")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--data", nargs="*", choices=SETS, default=["msrs", "roadscene", "harvard/pet_mri"])
    parser.add_argument("--also", nargs="*", default=[], metavar="PAIR", help="test pairs to calibrate on besides")
    arguments = parser.parse_args()
    size = None if arguments.size == "whole" else parse_size(arguments.size)
    count = None if arguments.pairs == "all" else int(arguments.pairs)
    pairs = [pair for name in arguments.data for pair in pairs_of(name, "test", count)]
    also = [pair for pair in pairs if pair.name in arguments.also]
    if missing := set(arguments.also) - {pair.name for pair in also}:
        parser.error(f"--also: {', '.join(sorted(missing))} is no pair of --data {' '.join(arguments.data)}")
    pairs = [pair for pair in pairs if pair not in also]
    drawn = tempfile.TemporaryDirectory()
    for sides in arguments.stress:
        pairs += stress_pairs(Path(drawn.name) / sides, parse_size(sides))
    for name in arguments.cases:
        key = " ".join([name, arguments.size, *(f"+ {pair.name}" for pair in also)])
        if arguments.afresh:
            write_record(
                {other: entry for other, entry in known(arguments.result).items() if other != key}, arguments.result
            )
        done = known(arguments.result).get(key, {"pairs": {}})["pairs"]
        if all(pair.name in done for pair in pairs):
            continue
        with tempfile.TemporaryDirectory() as folder:
            left = [pair for pair in pairs if pair.name not in done]
            measure_case(name, key, left, size, also, arguments, Path(folder))


if __name__ == "__main__":
    main()
