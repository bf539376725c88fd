"""TensorRT's messages: passed on to Python's logging; errors kept until they are asked for."""

from __future__ import annotations

import functools
import logging
from typing import Any

log = logging.getLogger(__name__)

# Errors become exceptions that quote them, so as log lines they are only for those who want to see everything.
_LEVELS = {"WARNING": logging.WARNING}
_FAILURES = ("INTERNAL_ERROR", "ERROR")


@functools.cache
def logger_of(library: Any) -> Any:
    """Return the process's one ``ILogger`` of ``tensorrt`` or ``tensorrt_rtx``, which keep the first they see."""

    class Logger(library.ILogger):  # type: ignore[misc]  # which library it is, only the caller knows
        """Thread-safe: the library calls it from several threads."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            """Take one message."""
            if severity.name in _FAILURES:
                self.errors.append(msg)
            log.log(_LEVELS.get(severity.name, logging.DEBUG), "%s", msg)

    return Logger()


def taken_errors(logger: Any) -> str:
    """Return the errors since the last call, each once, or nothing."""
    said, logger.errors = logger.errors, []
    return "; ".join(dict.fromkeys(said))
