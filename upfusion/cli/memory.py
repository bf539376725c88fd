"""How the process holds its memory."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, for the next map of that size.

    glibc takes every block over 32 MB from the kernel and gives it back, and the kernel clears it page by page: half
    of the time of a base-size pass in PyTorch. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
