"""What keeping freed memory saves."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEASURE = """
import ctypes, resource, sys
from upfusion.cli.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_a_freed_block_is_used_again_without_page_faults() -> None:
    """The third block of 64 MB costs page faults only where the second one went back to the kernel."""

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", MEASURE, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") * 10 < faults("as it is")
