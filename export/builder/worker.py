"""The process that builds one engine: a request on stdin, messages on stdout, end of stdin cancels."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from upfusion.export.builder.failures import error_from_messages
from upfusion.export.builder.library import Library, load
from upfusion.export.builder.messages import Failed, Finished, Message, Request, line_from_message
from upfusion.export.builder.peak_memory import peak_memory_bytes
from upfusion.runtime.errors import BuildError, UPFusionError

if TYPE_CHECKING:
    import tensorrt as trt


def main() -> None:
    """Build what stdin asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    send = _sender()
    request = Request.from_line(sys.stdin.readline())
    cancelled = threading.Event()
    threading.Thread(target=_wait_for_end_of_stdin, args=(cancelled,), daemon=True).start()
    try:
        send(_build(request, send, cancelled))
    except UPFusionError as error:
        send(Failed(error=type(error).__name__, problem=error.problem, hint=error.hint))


def _sender() -> Callable[[Message], None]:
    """Return the way to the caller; the libraries' own printing goes to stderr from now on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(message: Message) -> None:
        with lock:
            channel.write(line_from_message(message))
            channel.flush()

    return send


def _wait_for_end_of_stdin(cancelled: threading.Event) -> None:
    """Cancel when the caller closes its end or dies."""
    while os.read(0, 4096):
        pass
    cancelled.set()


def _build(request: Request, send: Callable[[Message], None], cancelled: threading.Event) -> Finished:
    """Build the engine and write the plan.

    Raises:
        UPFusionError: whatever kept it from being built.
    """
    library = load(request.builder)
    # These modules define subclasses of the library's classes, so they come after it.
    from upfusion.export.builder.binding import trt
    from upfusion.export.builder.configuration import configuration_for, save_timing_cache
    from upfusion.export.builder.logger import BuildLogger
    from upfusion.export.builder.monitor import Monitor
    from upfusion.export.builder.network import network_from_onnx

    logger = BuildLogger(send, verbose=request.verbose)
    monitor = Monitor(send, cancelled)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # what the binding makes of a null pointer
        raise error_from_messages(
            f"{library.name} {library.version} does not start here", logger.errors or [str(error)]
        ) from error
    parsed = network_from_onnx(builder, request, logger)
    config, settings = configuration_for(builder, parsed.network, request, library, monitor)
    logger.errors.clear()
    written = _write_plan(library, builder, parsed.network, config, request.plan)
    if cancelled.is_set():
        raise BuildError("the build was cancelled", "")
    if not written:
        raise error_from_messages(f"{library.name} {library.version} cannot build {request.onnx}", logger.errors)
    if request.timing_cache is not None:
        save_timing_cache(config, request.timing_cache)
    return Finished(
        version=library.version,
        activation_memory_bytes=logger.activation_memory_bytes,
        weights_bytes=logger.weights_bytes,
        bytes_moved=logger.bytes_moved or 0,
        peak_memory_bytes=peak_memory_bytes(),
        settings=settings,
    )


def _write_plan(
    library: Library, builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, path: str
) -> bool:
    """Write the plan as the library makes it, or in one piece where it cannot do that; False if there is none.

    Raises:
        BuildError: the disk does not take it.
    """
    failure: OSError | None = None
    if library.capabilities.streams_plan:
        from upfusion.export.builder.plan_writer import PlanWriter

        writer = PlanWriter(path)
        written = bool(builder.build_serialized_network_to_stream(network, config, writer))
        writer.close()
        failure = writer.failure
    else:
        plan = builder.build_serialized_network(network, config)
        written = plan is not None
        try:
            if plan is not None:
                Path(path).write_bytes(memoryview(plan))
        except OSError as error:
            failure = error
    if failure is not None:
        raise BuildError(
            f"the plan cannot be written: {failure.strerror}", "free some disk space, or choose another -o"
        )
    return written
