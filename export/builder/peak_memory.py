"""The largest resident memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Return the peak resident memory; 0 where the system does not tell (Windows).

    On Linux from ``/proc``, because ``getrusage`` also counts the process that this one was forked from.
    """
    if sys.platform == "win32":
        return 0
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10  # kB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
