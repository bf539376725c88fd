"""Values already measured, kept so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import TextIO

import upfusion
from upfusion.runtime.errors import InputError

log = logging.getLogger(__name__)

Key = tuple[str, str]  # identity of the method, digest of the pair's files


class Journal:
    """A file of JSON lines that grows by one whole line per measured image.

    A line counts only if it is complete, from this version of the tool, and about the same method and image files:
    both are named by digests, so a retrained artifact or a changed image is measured again. Without a path nothing
    is kept. A process killed while writing leaves at most one broken last line, which is passed over.
    """

    def __init__(self, path: Path | None) -> None:
        """Read what the file holds and open it for more.

        Raises:
            InputError: the file cannot be read or written.
        """
        self._known: dict[Key, dict[str, float]] = {}
        self._stream: TextIO | None = None
        if path is None:
            return
        try:
            ended = self._read(path) if path.exists() else True
            self._stream = path.open("a", encoding="utf-8")
            if not ended:
                self._stream.write("\n")
        except OSError as error:
            raise InputError(f"cannot keep results in {path}: {error.strerror}", "choose another -o folder") from error

    def get(self, key: Key) -> dict[str, float]:
        """Return the kept values, empty if there are none."""
        return self._known.get(key, {})

    def add(self, key: Key, values: dict[str, float]) -> None:
        """Keep values; they are in the file when this returns."""
        self._known[key] = self.get(key) | values
        if self._stream is not None:
            record = {"tool": upfusion.__version__, "method": key[0], "pair": key[1], "values": values}
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> Journal:
        """Return the journal itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _read(self, path: Path) -> bool:
        """Take over the file's lines; return whether the last one is ended."""
        text = path.read_text(encoding="utf-8", errors="replace")
        passed_over = 0
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if record["tool"] == upfusion.__version__:
                    values = {str(name): float(value) for name, value in record["values"].items()}
                    key = (str(record["method"]), str(record["pair"]))
                    self._known[key] = self._known.get(key, {}) | values
            except (ValueError, KeyError, TypeError, AttributeError):
                passed_over += bool(line.strip())
        if passed_over:
            log.warning("%s: passed over %d broken lines", path, passed_over)
        return not text or text.endswith("\n")
