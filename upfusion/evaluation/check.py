"""What is wrong with a folder of image pairs, before hours of training or a table are spent on it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from upfusion.evaluation.datasets import Layout, dataset_of, find_layout, read_split, split_folders
from upfusion.runtime.errors import InputError
from upfusion.runtime.files import sha256_of
from upfusion.runtime.images import SUFFIXES, Image, gray8, is_coloured, read_image

Severity = Literal["error", "warning"]
DEPTH = 2
"""How many folders down sets are looked for."""
_SHOWN = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong (error) or that should be known (warning)."""

    severity: Severity
    where: str
    problem: str
    hint: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one set of pairs is and what is wrong with it."""

    folder: Path
    dataset: str
    first: str
    second: str
    pairs: int
    """Pairs of which both images exist."""
    splits: dict[str, int]
    sizes: dict[str, int]
    """Pairs per size, as ``height x width``, most frequent first."""
    color: dict[str, int]
    """First images per kind: ``rgb``, ``gray``, ``gray in rgb``."""
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether nothing stands in the way of using the set."""
        return all(finding.severity != "error" for finding in self.findings)


def check_folder(folder: str | Path, done: Callable[[str], object] = lambda name: None) -> list[Report]:
    """Return a report on the set in a folder, or on every set up to two folders below it.

    ``done`` is called with each pair's name. Every image is read, so this takes about 20 ms a megapixel.

    Raises:
        InputError: no such folder, or no set of pairs in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", "give the folder of a dataset, such as data/msrs")
    places = _sets(folder, DEPTH)
    if not places:
        raise InputError(
            f"{folder}: no folders of image pairs in it, nor {DEPTH} folders down",
            "a set holds vis and ir, or a and b, with files of equal names; upfusion knows the layouts of MSRS, "
            "LLVIP, M3FD, RoadScene, TNO, Harvard and GFP-PC as they are downloaded",
        )
    return [_check(place, layout, done) for place, layout in places]


def _sets(folder: Path, depth: int) -> list[tuple[Path, Layout]]:
    """Return the sets in a folder: itself, or those below it."""
    layout = find_layout(folder, dataset_of(folder))
    if layout is not None:
        return [(folder, layout)]
    if depth == 0:
        return []
    below = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    return [found for child in below for found in _sets(child, depth - 1)]


class _Findings(list[Finding]):
    """Findings, appended by severity."""

    def error(self, where: object, problem: str, hint: str = "") -> None:
        self.append(Finding(severity="error", where=str(where), problem=problem, hint=hint))

    def warn(self, where: object, problem: str, hint: str = "") -> None:
        self.append(Finding(severity="warning", where=str(where), problem=problem, hint=hint))


def _check(folder: Path, layout: Layout, done: Callable[[str], object]) -> Report:
    findings = _Findings()
    sizes: Counter[str] = Counter()
    colors: Counter[str] = Counter()
    digests: dict[str, list[str]] = {}
    splits: dict[str, int] = {}
    all_names: set[str] = set()
    for split, (first, second) in split_folders(folder, layout).items():
        firsts, seconds = _listed(first, findings), _listed(second, findings)
        for stem in sorted(firsts.keys() ^ seconds.keys()):
            lonely, other = (firsts[stem], second) if stem in firsts else (seconds[stem], first)
            findings.error(lonely, f"has no partner named {stem} in {other}", "add it, or move this one away")
        names = sorted(firsts.keys() & seconds.keys())
        for name in names:
            _check_pair(firsts[name], seconds[name], findings, sizes, colors)
            digests.setdefault(sha256_of(firsts[name]), []).append(f"{split}/{name}" if split else name)
            done(name)
        if split:
            splits[split] = len(names)
            for name in sorted(all_names & set(names)):
                findings.warn(folder, f"{name} is in train and in test")
        all_names |= set(names)
    if not layout.by_split:
        splits = _check_lists(folder, all_names, findings)
    for same in digests.values():
        if len(same) > 1:
            findings.warn(folder, f"the first images of {_some(same)} are the same file", "keep one of them")
    if not all_names:
        findings.error(folder, "holds no pair")
    dataset = dataset_of(folder)
    return Report(
        folder=folder,
        dataset=dataset.name if dataset else folder.resolve().name,
        first=dataset.modalities[0] if dataset else "first",
        second=dataset.modalities[1] if dataset else "second",
        pairs=len(all_names),
        splits=splits,
        sizes=dict(sizes.most_common()),
        color=dict(colors.most_common()),
        findings=tuple(findings),
    )


def _listed(folder: Path, findings: _Findings) -> dict[str, Path]:
    """Return the images of a folder by stem; report the rest of what is there."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            findings.warn(path, "is no image", f"move it away; images are {', '.join(SUFFIXES)}")
        elif path.stem in found:
            findings.error(path, f"has the same name as {found[path.stem].name}", "keep one of them")
        else:
            found[path.stem] = path
    return found


def _check_pair(first: Path, second: Path, findings: _Findings, sizes: Counter[str], colors: Counter[str]) -> None:
    one, two = (_read(path, findings) for path in (first, second))
    if one is None or two is None:
        return
    sizes[_size(one)] += 1
    coloured = is_coloured(one)
    colors["rgb" if coloured else "gray" if one.ndim == 2 else "gray in rgb"] += 1
    if one.shape[:2] != two.shape[:2]:
        findings.error(
            second,
            f"has {_size(two)} pixels (height x width), its partner {first} has {_size(one)}",
            "the images of a pair must be registered, pixel on pixel",
        )
    elif np.array_equal(gray8(one), gray8(two)):
        findings.warn(second, f"shows the same as {first}", "a copy instead of the second modality?")
    if is_coloured(two):
        if coloured:
            findings.warn(second, "is in colour; only its luma is used", "is it infrared, or a false-colour rendering?")
        else:
            findings.error(
                second, "is in colour and its partner is not: the two folders look swapped", "swap the folders' names"
            )
    for path, image in ((first, one), (second, two)):
        if image.min() == image.max():
            findings.warn(path, f"is a single level, {image.min()}, everywhere")
        if image.dtype != np.uint8:
            findings.warn(path, "has 16 bits; metrics are computed on 8")


def _read(path: Path, findings: _Findings) -> Image | None:
    try:
        return read_image(path)
    except InputError as error:
        findings.error(path, error.problem, error.hint)
        return None


def _check_lists(folder: Path, names: set[str], findings: _Findings) -> dict[str, int]:
    """Compare ``train.txt`` and ``test.txt`` with the pairs; return how many of them each lists."""
    lists = {split: found for split in ("train", "test") if (found := read_split(folder, split)) is not None}
    for split, listed in lists.items():
        path = folder / f"{split}.txt"
        if missing := sorted(set(listed) - names):
            findings.error(path, f"lists {len(missing)} names without a pair: {_some(missing)}", "remove the lines")
        if twice := sorted(name for name, count in Counter(listed).items() if count > 1):
            findings.warn(path, f"lists {_some(twice)} more than once")
    if lists:
        if both := sorted(set.intersection(*map(set, lists.values()))) if len(lists) == 2 else []:
            findings.error(folder, f"{len(both)} pairs are in train.txt and test.txt: {_some(both)}", "test on others")
        if neither := sorted(names - set().union(*lists.values())):
            findings.warn(folder, f"{len(neither)} pairs are in no list: {_some(neither)}")
    return {split: len(set(listed) & names) for split, listed in lists.items()}


def _size(image: Image) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
