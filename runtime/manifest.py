"""What an artifact says about itself: ``x.json`` beside ``x``, and inside an ONNX file's metadata.

Both are complete before either gets its name, and the manifest is read before the artifact is opened. The copy inside
the ONNX file lacks ``sha256``, which only the finished file has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from upfusion.runtime.errors import ArtifactError, ManifestError
from upfusion.runtime.files import replacing, sha256_of

SCHEMA = 1
METADATA_KEY = "upfusion.manifest"
"""Key of the manifest in an ONNX file's metadata."""

LUMA_OUTPUT = "luma"
"""Output of an image-in, image-out graph that holds the fused luma where ``fused`` is coloured."""

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of the graph."""

    name: str
    dtype: str
    """numpy's name: ``float32``, ``uint8``, ``int64``."""
    shape: tuple[int | str, ...]
    """Sizes; a string names a size that may vary, such as ``height``."""
    meaning: str
    """Layout, colour order and value range in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRange:
    """Heights and widths that the graph takes: one (all three equal), or a range with the one to tune for."""

    minimum: tuple[int, int]
    optimum: tuple[int, int]
    maximum: tuple[int, int]

    @property
    def fixed(self) -> bool:
        """Whether only one size fits."""
        return self.minimum == self.maximum

    def holds(self, height: int, width: int) -> bool:
        """Whether a size lies in the range."""
        (low_h, low_w), (high_h, high_w) = self.minimum, self.maximum
        return low_h <= height <= high_h and low_w <= width <= high_w


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What goes into the graph and what comes out."""

    io: Literal["tensor", "image"]
    """``tensor``: float planes in 0..1, padded by the caller. ``image``: uint8 images as a camera gives them."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int
    sizes: SizeRange
    """Sizes of the tensors that enter: padded ones for ``tensor``, those of the images for ``image``."""
    size_multiple: int = 8
    """``tensor``: height and width must be multiples of this."""
    decision_inputs: tuple[TensorSpec, ...] = ()
    """Ranking decisions that come in beside the images (``ranking`` given); the graph decides nothing itself."""
    decision_outputs: tuple[TensorSpec, ...] = ()
    """Ranking decisions that come out beside the image (``--expose-ranks``)."""

    @property
    def all_inputs(self) -> tuple[TensorSpec, ...]:
        """Images, then decisions."""
        return (*self.inputs, *self.decision_inputs)

    @property
    def all_outputs(self) -> tuple[TensorSpec, ...]:
        """Images, then decisions."""
        return (*self.outputs, *self.decision_outputs)

    @property
    def color(self) -> Literal["gray", "ycbcr"]:
        """What ``fused`` shows: the luma, or with the visible image's chroma (image graphs only)."""
        return "ycbcr" if self.io == "image" and len(self.outputs[0].shape) == 4 else "gray"

    @property
    def channels(self) -> Literal["rgb", "bgr"]:
        """Order of the colour channels in the visible image, and in ``fused`` if that is coloured."""
        return "bgr" if self.io == "image" and "BGR" in self.inputs[0].meaning else "rgb"

    @property
    def gives_luma(self) -> bool:
        """Whether there is the fused luma beside a coloured image."""
        return any(spec.name == LUMA_OUTPUT for spec in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The file that this one was made from."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The trained network."""

    name: str
    """File name of the checkpoint."""
    sha256: str
    preset: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecord:
    """The prompt, and what it became: one constant channel order per perturbation module."""

    prompt: str
    encoder: str
    permutations: Mapping[str, tuple[int, ...]]
    """``tcpm1`` .. ``tcpm4``: channel indices, largest text logit first."""
    smallest_gaps: Mapping[str, float]
    """``tcpm1`` .. ``tcpm4``: smallest difference of neighbouring text logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """How an engine was built."""

    builder: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    version: str
    targets: tuple[str, ...]
    """Compute capabilities such as ``sm86``; empty where the builder tunes for the GPU it runs on."""
    gpu: str
    """Name of the GPU that the engine was tuned on; empty where there was none."""
    settings: Mapping[str, Any]
    seconds: float
    peak_memory_bytes: int
    """Largest resident memory of the building process."""
    activation_memory_bytes: int
    weights_bytes: int
    bytes_moved: int = 0
    """Read and written by the engine's layers in one run; 0 where sizes vary or the builder does not list layers."""
    executed_on_gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that is known about an artifact."""

    kind: Literal["onnx", "engine"]
    source: Source
    text: TextRecord
    precision: Precision
    contract: Contract
    opset: int
    versions: Mapping[str, str]
    """Library name -> version at the time of writing."""
    parity: Mapping[str, float]
    """Measured differences to the parent, in units named by the key."""
    parent: Parent | None = None
    """The ONNX file of an engine."""
    target: str = ""
    """What the rewrites were chosen for: ``tensorrt`` or ``cpu``."""
    rewrites: tuple[str, ...] = ()
    """Names of the rewrites that changed the network; none in a plain export."""
    notes: tuple[str, ...] = ()
    """Sentences that a user of the artifact must know."""
    ranking: str = "dynamic"
    """``dynamic``: decided per image; ``frozen``: by a calibration, once; ``given``: by another graph."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """Name, digest and data of the calibration that the precision follows; empty without one."""
    build: BuildRecord | None = None
    acceptance: Mapping[str, Any] = field(default_factory=dict)
    """Verdict and figures of ``upfusion accept``; empty until it ran."""
    sha256: str = ""
    """Digest of the artifact's bytes; empty inside the artifact itself."""
    created: str = ""
    """UTC time, ISO 8601."""
    tool_version: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the manifest as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Parse :meth:`to_json`; ``where`` names the file in errors.

        Raises:
            ManifestError: not JSON, a newer schema, or fields missing or of another type.
        """
        try:
            record = json.loads(text)
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise ManifestError(
                f"{where}: the manifest is not JSON: {error}", "export or build the artifact again"
            ) from (error)
        if record.get("schema") != SCHEMA:
            raise ManifestError(
                f"{where}: manifest schema {record.get('schema')}, this upfusion reads schema {SCHEMA}",
                "update upfusion, or export or build the artifact again",
            )
        try:
            manifest: Manifest = structured(record, cls)
            return manifest
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(
                f"{where}: the manifest is incomplete or damaged: {error}", "export or build the artifact again"
            ) from error

    def write(self, artifact: str | Path) -> Path:
        """Write ``ARTIFACT.json`` beside the finished artifact, with the artifact's digest filled in."""
        path = manifest_path(artifact)
        with replacing(path) as temporary:
            self.write_as(temporary, artifact)
        return path

    def write_as(self, path: Path, artifact: str | Path) -> None:
        """Write to ``path`` what :meth:`write` puts beside the artifact: with the artifact's digest filled in."""
        path.write_text(dataclasses.replace(self, sha256=sha256_of(artifact)).to_json(), encoding="utf-8")


@contextlib.contextmanager
def replacing_artifact(artifact: str | Path) -> Iterator[tuple[Path, Path]]:
    """Yield temporary paths of an artifact and of its manifest; when the block ends well, both get their names.

    Raises:
        InputError: as ``upfusion.runtime.files.replacing``, for either of the two.
    """
    with replacing(manifest_path(artifact)) as record, replacing(artifact) as temporary:
        yield temporary, record


def manifest_path(artifact: str | Path) -> Path:
    """Return where the manifest of an artifact lies: its full name with ``.json`` behind it."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + ".json")


def read_manifest(artifact: str | Path) -> Manifest:
    """Read the manifest beside an artifact and check that the artifact's digest is the one it names.

    Raises:
        ArtifactError: the artifact is missing, or its bytes are not those that the manifest was written for.
        ManifestError: there is no manifest, or it is damaged.
    """
    artifact = Path(artifact)
    if not artifact.is_file():
        raise ArtifactError(f"{artifact}: no such file", "check the path")
    path = manifest_path(artifact)
    if not path.is_file():
        raise ManifestError(f"{path} is missing", f"keep {path.name} beside {artifact.name}, or make both again")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not text: {error.reason}", "export or build the artifact again") from error
    manifest = Manifest.from_json(text, where=str(path))
    found = sha256_of(artifact)
    if manifest.sha256 != found:
        raise ArtifactError(
            f"{artifact} is not the file its manifest describes: SHA-256 {found[:12]}…, "
            f"manifest {manifest.sha256[:12]}…",
            "it is truncated or was replaced: copy both files again, or export or build it again",
        )
    return manifest


T = TypeVar("T")


def structured(value: Any, kind: type[T] | Any) -> Any:
    """Turn JSON values back into the dataclasses and tuples that ``kind`` names.

    Raises:
        TypeError: a value does not have the type its field states.
        KeyError: a field without a default is missing.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object for {kind.__name__}, found {value!r:.40}")
        hints = typing.get_type_hints(kind)
        unknown = value.keys() - hints.keys()
        if unknown:
            raise TypeError(f"unknown fields {sorted(unknown)}")
        return kind(**{name: structured(item, hints[name]) for name, item in value.items()})
    if origin is types.UnionType or origin is typing.Union:
        for option in arguments:
            try:
                return structured(value, option)
            except TypeError:
                continue
        raise TypeError(f"{value!r:.40} is none of {kind}")
    if origin is Literal:
        if value not in arguments:
            raise TypeError(f"{value!r:.40} is none of {arguments}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, found {value!r:.40}")
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(structured(item, item_kind) for item, item_kind in zip(value, kinds, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object, found {value!r:.40}")
        return {key: structured(item, arguments[1]) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"expected {getattr(kind, '__name__', kind)}, found {value!r:.40}")
    return value
