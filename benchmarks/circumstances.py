"""What a figure was measured with: when, by which command, on which machine, with which libraries."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from upfusion.bench.machine import machine, versions


def circumstances(script: str, arguments: Sequence[str] | None = None, **facts: object) -> dict[str, Any]:
    """Return date, command, machine and versions for the record of ``benchmarks/SCRIPT.py``.

    ``arguments`` are those of the command line by default; ``facts``, such as ``threads``, go to the machine's.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"benchmarks.{script}", *typed]),
        "machine": machine() | facts,
        "versions": versions(),
    }
