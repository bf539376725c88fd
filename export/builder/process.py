"""The worker process as the caller sees it: one call, which ends with the worker gone."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, TypeAlias

from upfusion.export.builder.library import INSTALL, MODULES
from upfusion.export.builder.messages import Failed, Finished, Log, Message, Progress, Request, message_from_line
from upfusion.export.builder.options import BuilderName
from upfusion.runtime.errors import BuildError, MissingDependencyError

log = logging.getLogger("upfusion.export.builder")

OnProgress: TypeAlias = Callable[[str, float], None]
"""Called with the library's name of what it does and the fraction done, 0..1."""

_BOOT = "from upfusion.export.builder.worker import main; main()"

STOP_TIMEOUT_S = 10.0
"""How long a cancelled worker may take to its next step before it is killed."""


def build_in_worker(request: Request, on_progress: OnProgress | None = None) -> Finished:
    """Build in a fresh process and return what the library reported once the plan is written.

    Whatever ends this call, Ctrl-C included, the worker is gone afterwards.

    Raises:
        UPFusionError: what the worker reported.
        BuildError: the worker died.
    """
    # The caller's path list, because "-c" would put the working directory before it.
    code = f"import sys; sys.path[:] = {sys.path!r}; {_BOOT}"
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
        )
        try:
            for message in _exchange(process, request):
                if isinstance(message, Progress) and on_progress:
                    on_progress(message.phase, message.fraction)
                elif isinstance(message, Log):
                    log.log(message.level, "%s: %s", request.builder, message.message)
                elif isinstance(message, Failed):
                    raise message.exception()
                elif isinstance(message, Finished):
                    return message
        finally:
            _stop(process)
        raise _death(process.returncode, request, stderr)


def describe(name: BuilderName) -> tuple[str, tuple[str, ...]]:
    """Load a library in a fresh process and return its version and the targets that it builds for without a GPU.

    Raises:
        UPFusionError: it is not installed, or does not load.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from upfusion.export.builder.library import main; main({name!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    try:
        answer = json.loads(run.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        answer = {"problem": f"{MODULES[name]} does not load: {reason}", "hint": INSTALL[name]}
    if "problem" in answer:
        raise MissingDependencyError(answer["problem"], answer["hint"])
    return answer["version"], tuple(answer["targets"])


def _exchange(process: subprocess.Popen[str], request: Request) -> Iterator[Message]:
    """Send the request and yield the worker's messages until it closes its end."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request.to_line())
        process.stdin.flush()
    except BrokenPipeError:  # it died at its start; its stderr says why
        return
    for line in process.stdout:
        yield message_from_line(line)


def _stop(process: subprocess.Popen[str]) -> None:
    """Let the worker end: it sees the end of its stdin and stops at its next step, or is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    finally:  # too slow, or a second Ctrl-C
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def _death(code: int, request: Request, stderr: IO[bytes]) -> BuildError:
    """Return the error for a worker that ended without a word."""
    stderr.seek(0)
    lines = stderr.read().decode("utf-8", errors="replace").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    if code == -getattr(signal, "SIGKILL", 0):
        return BuildError(
            f"the building process of {request.onnx} was killed, most likely for want of memory{last}",
            "close other programs, export for a smaller --size, or build on a machine with more memory",
        )
    for line in lines:
        log.error("%s", line)
    return BuildError(
        f"the building process of {request.onnx} died with exit code {code}{last}",
        "run again with --verbose, and report the lines above",
    )
