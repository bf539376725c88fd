"""The library's messages: passed on, errors kept, figures read."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable

from upfusion.export.builder.binding import trt
from upfusion.export.builder.layers import bytes_moved
from upfusion.export.builder.messages import Log, Message

_ACTIVATION = re.compile(r"^Total Activation Memory: (\d+) bytes")
_INT64 = re.compile(r"Make sure (input|output) \S+ has Int64 binding")
"""Said of every ranking decision, as a warning; the runtime binds each tensor by its type in the manifest."""
_WEIGHTS = re.compile(r"^Total Weights Memory: (\d+) bytes")


class BuildLogger(trt.ILogger):  # type: ignore[misc, unused-ignore]  # untyped where no typings are
    """Passes warnings and worse on as they come, and INFO where asked for; thread-safe.

    ``errors`` holds the messages of errors, which are the library's only account of a failed build.
    ``activation_memory_bytes`` and ``weights_bytes`` hold what the builder reports on its way, the largest of
    several profiles; it says so on any machine, while the engine itself can be asked only on a GPU. ``bytes_moved``
    sums the layers that it lists at the end.
    """

    def __init__(self, send: Callable[[Message], None], *, verbose: bool) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.activation_memory_bytes = 0
        self.weights_bytes = 0
        self.bytes_moved: int | None = 0
        self._send = send
        self._lock = threading.Lock()
        self._levels = {
            trt.ILogger.INTERNAL_ERROR: logging.ERROR,
            trt.ILogger.ERROR: logging.ERROR,
            trt.ILogger.WARNING: logging.WARNING,
            trt.ILogger.INFO: logging.INFO,
        }
        self._threshold = logging.INFO if verbose else logging.WARNING

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take one message of the library."""
        level = self._levels.get(severity)
        if level is None:  # VERBOSE: tens of thousands of lines
            with self._lock:
                moved, total = bytes_moved(msg), self.bytes_moved
                self.bytes_moved = None if moved is None or total is None else total + moved
            return
        if _INT64.search(msg):
            level = logging.INFO
        with self._lock:
            if level >= logging.ERROR:
                self.errors.append(msg)
            elif found := _ACTIVATION.match(msg):
                self.activation_memory_bytes = max(self.activation_memory_bytes, int(found[1]))
            elif found := _WEIGHTS.match(msg):
                self.weights_bytes = max(self.weights_bytes, int(found[1]))
        # Errors come back as one exception with a remedy, so they are no log line unless everything is wanted.
        if level >= self._threshold and (level < logging.ERROR or self._threshold <= logging.INFO):
            self._send(Log(level=level, message=msg))
