"""The library's progress, and the way to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import SupportsInt

from upfusion.export.builder.binding import trt
from upfusion.export.builder.messages import Message, Progress
from upfusion.export.builder.progress import PhaseTree

_INTERVAL_S = 0.1
"""Between two reports: a build has thousands of steps."""


class Monitor(trt.IProgressMonitor):  # type: ignore[misc, unused-ignore]  # untyped where no typings are
    """Reports the build's progress, and stops it once ``cancelled`` is set; called from several threads."""

    def __init__(self, send: Callable[[Message], None], cancelled: threading.Event) -> None:
        trt.IProgressMonitor.__init__(self)
        self._send = send
        self._cancelled = cancelled
        self._tree = PhaseTree()
        self._lock = threading.Lock()
        self._reported = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
        """Note a phase."""
        with self._lock:
            self._tree.start(phase_name, parent_phase, int(num_steps))
            self._report(phase_name)

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """Note a step; False stops the build."""
        with self._lock:
            self._tree.step(phase_name, int(step))
            self._report(phase_name)
        return not self._cancelled.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """Note the end of a phase."""
        with self._lock:
            self._tree.finish(phase_name)
            self._report(phase_name)

    def _report(self, phase: str) -> None:
        now, fraction = time.monotonic(), self._tree.fraction()
        if fraction >= 1.0 or now - self._reported >= _INTERVAL_S:
            self._reported = now
            self._send(Progress(phase=phase, fraction=fraction))
