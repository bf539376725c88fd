"""Files that are either complete or absent: write to a temporary name, then rename; digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from upfusion.runtime.errors import InputError


def create_folder(folder: Path) -> None:
    """Create an output folder and what lies above it, where they are not there yet.

    Raises:
        InputError: it cannot be created, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {folder}: {error.strerror}", "choose another output folder") from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder that becomes ``path`` when the block ends well.

    The temporary keeps the target's suffixes, since image and model writers choose the format by it. When the
    block raises, the temporary is removed and a file that was there before stays as it was.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix="".join(target.suffixes[-2:]), dir=target.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror}",
            f"create the folder {target.parent}, or choose another output path",
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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
