"""A request to end (SIGTERM, or the terminal's end) stops a command as Ctrl-C does: nothing half-written stays."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C or a request to end, as shells have it for the former."""

_REQUESTS = ("SIGTERM", "SIGHUP")
"""What service managers and closed terminals send; Windows has no SIGHUP."""


def stop_as_by_ctrl_c() -> None:
    """Let requests to end raise KeyboardInterrupt in the main thread, once; further ones are ignored.

    A video is then playable up to there, temporary files are removed, and a builder's process ends. What was set to
    be ignored, as ``nohup`` does, stays ignored. Forked processes end at once, as if nothing had been set.
    """
    owner = os.getpid()
    requests = [getattr(signal, name) for name in _REQUESTS if hasattr(signal, name)]
    taken = [request for request in requests if signal.getsignal(request) is signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for request in taken:
            signal.signal(request, signal.SIG_IGN)
        raise KeyboardInterrupt

    for request in taken:
        signal.signal(request, stop)
