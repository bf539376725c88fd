"""The plan on its way to the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upfusion.export.builder.binding import trt


class PlanWriter(trt.IStreamWriter):  # type: ignore[misc, unused-ignore]  # untyped where no typings are
    """Appends what the library hands over, so that the plan is never whole in memory.

    An exception must not travel through the library: ``failure`` keeps it, and 0 bytes taken stop the build.
    """

    def __init__(self, path: str) -> None:
        trt.IStreamWriter.__init__(self)
        self.failure: OSError | None = None
        self._file = Path(path).open("wb")  # noqa: SIM115 - open between the library's calls

    def write(self, data: Any, size: Any = None) -> int:
        """Write a block of bytes and return how many were taken; ``size`` is in the typings, not in the call."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            return 0

    def close(self) -> None:
        """Flush and close the file; a failure is kept like one of writing."""
        try:
            self._file.close()
        except OSError as error:
            self.failure = self.failure or error
