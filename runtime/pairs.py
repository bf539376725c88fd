"""Which image belongs to which: pairs of files matched by stem, never by listing order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from upfusion.runtime.errors import InputError, UPFusionError
from upfusion.runtime.images import SUFFIXES, Image, check_sizes, read_gray, read_image

_LITTER = ("thumbs.db", "desktop.ini")
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two image files that show the same view."""

    name: str
    """Stem of the first file."""
    first: Path
    """Visible image, or the modality that may be coloured (CT, PET, SPECT, GFP)."""
    second: Path
    """Infrared image, or the gray modality (MRI, phase contrast)."""


def find_pairs(first: str | Path, second: str | Path) -> list[Pair]:
    """Return the pairs of two files, or of two folders (matched by file stem, sorted by it).

    Hidden files and the litter of desktop systems are passed over.

    Raises:
        InputError: a path is missing, a file is paired with a folder, a folder holds no images or other files than
            images, two files of a folder share a stem, or a file has no partner.
    """
    first, second = Path(first), Path(second)
    for path in (first, second):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder", "check the path")
    if first.is_file() and second.is_file():
        return [Pair(name=first.stem, first=first, second=second)]
    if first.is_file() != second.is_file():
        file, folder = (first, second) if first.is_file() else (second, first)
        raise InputError(f"{file} is a file and {folder} is a folder", "give two files or two folders")
    firsts, seconds = _images_by_stem(first), _images_by_stem(second)
    lonely = [str(firsts[stem]) for stem in firsts.keys() - seconds.keys()]
    lonely += [str(seconds[stem]) for stem in seconds.keys() - firsts.keys()]
    if lonely:
        raise InputError(
            f"{len(lonely)} of {len(firsts) + len(seconds)} images have no partner of the same name in the other "
            f"folder: {_listed(lonely)}",
            "name both images of a pair alike (a.png and a.jpg are a pair), or move the others away",
        )
    return [Pair(name=stem, first=firsts[stem], second=seconds[stem]) for stem in sorted(firsts)]


def read_pair(pair: Pair) -> tuple[Image, Image]:
    """Return the pair's images: the first as the file holds it, the second as one gray channel.

    Raises:
        InputError: a file cannot be used, or the sizes differ.
    """
    first, second = read_image(pair.first), read_gray(pair.second)
    check_sizes(first, second, str(pair.first), str(pair.second))
    return first, second


@contextlib.contextmanager
def naming(pair: Pair) -> Iterator[None]:
    """Put the pair's name in front of an error that the block raises."""
    try:
        yield
    except UPFusionError as error:
        raise type(error)(f"pair {pair.name}: {error.problem}", error.hint) from error


def _images_by_stem(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by stem."""
    found: dict[str, Path] = {}
    foreign: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in _LITTER:
            continue
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            foreign.append(path.name)
        elif path.stem in found:
            raise InputError(
                f"{folder} holds two images named {path.stem}: {found[path.stem].name} and {path.name}",
                "keep one of them: pairs are matched by name without suffix",
            )
        else:
            found[path.stem] = path
    if foreign:
        raise InputError(
            f"{folder} holds what is not an image: {_listed(foreign)}",
            f"move it away; images are {', '.join(SUFFIXES)}",
        )
    if not found:
        raise InputError(f"{folder} holds no images", f"images are {', '.join(SUFFIXES)}")
    return found


def _listed(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more
