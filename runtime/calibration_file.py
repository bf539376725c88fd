"""The calibration of a network: what real pairs showed of its ranges and decisions, as one JSON file.

``upfusion calibrate`` writes it, ``upfusion export --calibration`` obeys it. The two know each other through this file
only. Site names are module paths of ``upfusion.model.FusionNetwork``; decisions are named as in
``upfusion.model.decisions``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from upfusion.runtime.errors import ArtifactError
from upfusion.runtime.files import replacing, sha256_of
from upfusion.runtime.manifest import Source, structured

SCHEMA = 1
SAMPLE_SIZE = (96, 128)
"""Height and width of the crops, if the pair is not smaller; multiples of 8."""

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPair:
    """One pair that the network ran on."""

    name: str
    size: tuple[int, int]
    """Height and width of the image files."""
    first_sha256: str
    second_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRange:
    """Magnitudes of the values that one layer gave."""

    largest: float
    p9999: float
    """99.99th percentile of a sample; the largest of it over the pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareSum:
    """Sums of squares over all pixels of one channel, as the norm of queries or keys needs them."""

    largest: float
    """At the pairs' own sizes."""
    at_target: float
    """Largest mean square times the pixels that the layer has at the target size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """How one decision fell over the pairs.

    A margin is the gap of neighbouring values in the sorted list, over the places that matter: the chosen ones and
    the first that was not. For attention masks it is the gap between the last logit kept and the first dropped.
    """

    smallest_margin: float
    p1_margin: float
    """1st percentile of the margins of all pairs together."""
    agreement: tuple[float, ...]
    """For orders: at each place, the share of pairs that have the majority's channel there. For masks: one number,
    the mean share of pairs that agree with the majority on an entry."""
    majority: tuple[int, ...]
    """For orders: channel indices, best first. For masks: the flat (heads, c, c) places that are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A small crop of a real pair, on which the exporter measures the graph's own layers."""

    name: str
    visible: str
    """PNG, base64; RGB or gray."""
    infrared: str
    """PNG, base64; gray."""

    @classmethod
    def of(cls, name: str, visible: Image, infrared: Image) -> Sample:
        """Pack two uint8 images, (h, w, 3) RGB or (h, w), and (h, w)."""
        return cls(name=name, visible=_packed(visible), infrared=_packed(infrared))

    def images(self) -> tuple[Image, Image]:
        """Return the two images as :meth:`of` took them."""
        return _unpacked(self.visible), _unpacked(self.infrared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What calibration found."""

    source: Source
    """The network that ran; an export from another one refuses the file."""
    text_sha256: str
    """Digest of the text feature's bytes: another prompt makes other decisions."""
    pairs: tuple[CalibrationPair, ...]
    target_size: tuple[int, int]
    ranges: Mapping[str, SiteRange]
    sums: Mapping[str, SquareSum]
    decisions: Mapping[str, DecisionRecord]
    samples: tuple[Sample, ...]
    versions: Mapping[str, str]
    created: str
    tool_version: str
    schema: int = SCHEMA

    def write(self, path: str | Path) -> None:
        """Write the file, atomically."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")

    def record(self, path: str | Path) -> dict[str, object]:
        """Return what a manifest keeps of the calibration at ``path``."""
        return {
            "name": Path(path).name,
            "sha256": sha256_of(path),
            "pairs": [pair.name for pair in self.pairs],
            "target_size": list(self.target_size),
        }


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ArtifactError: the file is missing or damaged, or of another schema.
    """
    path = Path(path)
    remedy = "make it again: upfusion calibrate CHECKPOINT --data VIS IR -o calibration.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: no such calibration", remedy)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            found = record.get("schema") if isinstance(record, dict) else None
            raise ValueError(f"schema {found}, this upfusion reads schema {SCHEMA}")
        calibration: Calibration = structured(record, Calibration)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a calibration: {error}", remedy) from error
    return calibration


def _packed(image: Image) -> str:
    ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", ordered)
    assert done, image.shape
    return base64.b64encode(data.tobytes()).decode("ascii")


def _unpacked(text: str) -> Image:
    image = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ArtifactError("a sample of the calibration is damaged", "run upfusion calibrate again")
    return np.asarray(image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
