"""Which FP32 artifact an artifact is to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from upfusion.runtime.artifact import CHECKPOINT_SUFFIXES
from upfusion.runtime.errors import ArtifactError, InputError, ManifestError
from upfusion.runtime.files import sha256_of
from upfusion.runtime.manifest import Manifest, manifest_path, read_manifest


def reference_for(artifact: Path, manifest: Manifest, named: Path | None = None) -> Path:
    """Return the FP32 graph or the checkpoint that an artifact must agree with.

    Without ``named`` it is looked for in the artifact's folder: the graph that an engine was built from if that is
    FP32, another FP32 graph of the same network and prompt, or the checkpoint by its name.

    Raises:
        InputError: none was found.
        ArtifactError: the named one is missing, or is of other weights or of another prompt.
    """
    if named is not None:
        if (reason := why_not(named, manifest)) is not None:
            raise ArtifactError(f"{named} is no reference for {artifact.name}: {reason}", _wanted(manifest))
        return named
    refused = []
    for candidate in _candidates(artifact, manifest):
        if candidate.resolve() == artifact.resolve() or not candidate.is_file():
            continue
        if (reason := why_not(candidate, manifest)) is None:
            return candidate
        refused.append(f"{candidate.name}: {reason}")
    raise InputError(
        f"the FP32 reference of {artifact.name} is not beside it" + (f" ({'; '.join(refused)})" if refused else ""),
        f"copy {manifest.source.name} or an FP32 graph of it there, or name one with --reference",
    )


def why_not(path: Path, manifest: Manifest) -> str | None:
    """Return why a file cannot be the reference of the artifact with this manifest; None if it can."""
    if not path.is_file():
        return "no such file"
    if path.suffix.lower() in CHECKPOINT_SUFFIXES:
        return None if sha256_of(path) == manifest.source.sha256 else "other weights"
    try:
        other = read_manifest(path)
    except (ArtifactError, ManifestError) as error:
        return error.problem
    if other.kind != "onnx":
        return "an engine"
    if other.precision != "fp32":
        return f"its precision is {other.precision}"
    if other.source.sha256 != manifest.source.sha256:
        return "other weights"
    if other.contract.decision_inputs:
        return "it takes decisions and makes none"
    if manifest.contract.decision_inputs and not other.contract.decision_outputs:
        return "it does not show the decisions to compute with (--expose-ranks)"
    if other.text.permutations != manifest.text.permutations:
        return f"another prompt: {other.text.prompt!r:.60}"
    return None


def _candidates(artifact: Path, manifest: Manifest) -> Iterator[Path]:
    """Yield what could be the reference, the nearest first."""
    folder = artifact.parent
    if manifest.parent is not None:
        yield folder / manifest.parent.name
    for beside in sorted(folder.glob("*.onnx")):
        if manifest_path(beside).is_file():
            yield beside
    yield folder / manifest.source.name


def _wanted(manifest: Manifest) -> str:
    """Return what would be a reference."""
    return (
        f"name {manifest.source.name} (SHA-256 {manifest.source.sha256[:12]}…), or an FP32 graph exported from it "
        "with the same prompt"
    )
