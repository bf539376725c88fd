"""Files that are either complete or absent: write to a temporary name, then rename; digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from upfusion.runtime.errors import InputError


def create_folder(folder: Path) -> None:
    """Create an output folder and what lies above it, where they are not there yet.

    Raises:
        InputError: as :func:`check_folder`'s.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the folder {folder}: {error.strerror}", "choose another output folder"
        ) from error


def check_folder(folder: Path) -> None:
    """Raise unless an output folder is there or can be created: asked before anything else is looked at.

    Raises:
        InputError: it, or what lies above it, is a file or cannot be written into.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"cannot create the folder {folder}: {place.name} is a file", "choose another output folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"nothing can be written into the folder {place}", "choose another output folder")


def check_output(path: str | Path, suffixes: tuple[str, ...] = ()) -> None:
    """Raise unless a file can be written at ``path``: asked before long work, whose result would be lost.

    Raises:
        InputError: none of ``suffixes``, a folder, or in a folder that is not there or cannot be written.
    """
    target = Path(path)
    if suffixes and target.suffix.lower() not in suffixes:
        raise InputError(
            f"{target}: what is written here ends in {' or '.join(suffixes)}",
            f"name it {target.with_name(target.name + suffixes[0])}",
        )
    _temporary_beside(target).unlink()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder that becomes ``path`` when the block ends well.

    The temporary keeps the target's suffixes, since image and model writers choose the format by it. When the
    block raises, the temporary is removed and a file that was there before stays as it was.

    Raises:
        InputError: ``path`` is a folder, its own folder does not exist or cannot be written, or the disk is full.
    """
    target = Path(path)
    temporary = _temporary_beside(target)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(
            f"cannot write {target}: {error.strerror}", "free some space, or choose another output path"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What writing fails with where there is no room: on the disk, in the user's share of it, within a limit."""


def _temporary_beside(target: Path) -> Path:
    """Create an empty file that can become ``target`` by renaming.

    Raises:
        InputError: as :func:`replacing`'s.
    """
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder", f"name a file: {target / 'NAME'}")
    try:
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix="".join(target.suffixes[-2:]), dir=target.parent)
    except OSError as error:
        if error.errno in _FULL:
            remedy = "free some space, or choose another output path"
        elif isinstance(error, FileNotFoundError):
            remedy = f"create the folder {target.parent}, or choose another output path"
        else:
            remedy = "choose another output path"
        raise InputError(f"cannot write {target}: {error.strerror}", remedy) from error
    os.close(handle)
    return Path(name)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
