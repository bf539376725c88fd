"""The object a user calls: images in, fused image out, whatever runs the graph."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from upfusion import __version__
from upfusion.runtime import images, streaming
from upfusion.runtime.artifact import open_backend
from upfusion.runtime.backends.base import (
    Arrays,
    Backend,
    BufferedBackend,
    GpuBackend,
    Shape,
    SharedBackend,
    TimedBackend,
)
from upfusion.runtime.decisions import Decisions, fill_natural
from upfusion.runtime.errors import InputError
from upfusion.runtime.gpu_arrays import is_on_gpu, shape_of
from upfusion.runtime.graph_images import Color, Fused, GraphImages, flipped
from upfusion.runtime.images import Image
from upfusion.runtime.manifest import LUMA_OUTPUT, Contract, Manifest
from upfusion.runtime.streaming import Item, Outcome, images_of

log = logging.getLogger(__name__)

Channels = Literal["rgb", "bgr"]
"""Order of the colour channels in the caller's images; OpenCV's captures give ``bgr``."""

COLORS: tuple[Color, ...] = ("auto", "gray", "ycbcr")

_MOST_CHANNELS = 4
"""A three-dimensional array with more than this along the last axis is a batch of gray images."""


def load(
    path: str | Path,
    *,
    device: str = "auto",
    contexts: int = 1,
    max_batch: int | None = None,
    channels: Channels = "rgb",
    warm_up: bool | None = None,
    options: Any = None,
) -> Fuser:
    """Return a fuser for an ONNX file or an engine.

    ``device``: ``cpu``, ``cuda``, ``cuda:1``, ``tensorrt`` (ONNX Runtime's provider of that name), or ``auto``, which
    takes the GPU where the installed libraries can use one and says in the log what it took. A device that is asked
    for by name is used, or the call fails. ``channels``: colour order of the images that you will hand in and get
    back. ``options``: the backend's own, ``OnnxRuntimeOptions`` or ``EngineOptions``; with the former and ``auto``,
    their provider is taken.
    ``warm_up`` runs once before returning; by default on GPUs, where the first run compiles and allocates.

    Raises:
        ArtifactError: the file is missing, truncated, foreign, or not the one its manifest describes.
        ManifestError: there is no manifest, or it is damaged.
        MissingDependencyError: the library that runs it is not installed.
        DeviceError: it does not run on this machine.
        InputError: an unknown device.
    """
    path = Path(path)
    backend, manifest = open_backend(path, device, options)
    return fuser_of(
        backend, manifest, name=path.name, contexts=contexts, max_batch=max_batch, channels=channels, warm_up=warm_up
    )


def fuser_of(
    backend: Backend,
    manifest: Manifest,
    *,
    name: str,
    contexts: int = 1,
    max_batch: int | None = None,
    channels: Channels = "rgb",
    warm_up: bool | None = None,
) -> Fuser:
    """Return a fuser on an opened artifact; the backend is closed with it, and if this fails.

    Arguments and errors are those of :func:`load`.
    """
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(backend.close)
        fuser = Fuser(
            backend,
            manifest.contract,
            name=name,
            source=manifest.source.name,
            sha256=manifest.sha256,
            contexts=contexts,
            max_batch=max_batch,
            channels=channels,
        )
        on_failure.pop_all()
        on_failure.callback(fuser.close)
        log.info("%s runs on %s", name, fuser.device)
        if warm_up or (warm_up is None and fuser.device != "CPU"):
            fuser.warm_up()
        on_failure.pop_all()
    return fuser


class Fuser:
    """Fuses image pairs with one loaded artifact. Safe to call from several threads.

    ``contexts`` calls run at the same time, each with buffers of its own; further callers wait.
    """

    def __init__(
        self,
        backend: Backend,
        contract: Contract,
        *,
        name: str = "the artifact",
        source: str = "CHECKPOINT",
        sha256: str = "",
        contexts: int = 1,
        max_batch: int | None = None,
        channels: Channels = "rgb",
    ) -> None:
        """Take over a backend; it is closed with the fuser.

        ``name`` is the artifact's and ``source`` the checkpoint's file name, for messages; ``sha256`` is the
        artifact's, for provenance. ``max_batch`` limits how many pairs run at once where the graph leaves the batch
        open; it is the contract's by default. ``channels`` is the colour order of the caller's images and results.

        Raises:
            InputError: several contexts of a backend that has one, a batch that is not positive, an unknown order.
        """
        if channels not in ("rgb", "bgr"):
            raise InputError(f"unknown order of channels {channels!r}", "use rgb or bgr")
        if contexts < 1 or (max_batch is not None and max_batch < 1):
            raise InputError(f"contexts={contexts}, max_batch={max_batch}: both must be at least 1", "leave them out")
        if contexts > 1 and not isinstance(backend, SharedBackend):
            raise InputError(f"{name} on {backend.device} runs in one context only", "load it with contexts=1")
        self.contract = contract
        self.device = backend.device
        self.name = name
        self.contexts = contexts
        self._bgr_caller = channels == "bgr"
        self._source = source
        self._sha256 = sha256
        self._executor: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()
        self._images = GraphImages(contract, name=name, source=source)
        self._most = contract.batch if self._images.fixed_batch else max_batch or contract.batch
        self._workers = [_Worker(backend, contract)]
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: closed
        self._closed = False
        try:
            for _ in range(contexts - 1):
                assert isinstance(backend, SharedBackend)
                self._workers.append(_Worker(backend.another(), contract))
        except BaseException:  # the backend itself is still the caller's
            for worker in self._workers[1:]:
                worker.backend.close()
            raise
        for worker in self._workers:
            self._idle.put(worker)

    def __call__(
        self, visible: Any, infrared: Any, color: Color = "auto", *, stream: object = None, out: Any = None
    ) -> Any:
        """Return the fused image of a pair, the array of a batch, or the list of a list of pairs; always uint8.

        One pair: ``visible`` (H, W, 3) or (H, W), ``infrared`` (H, W), each uint8 or uint16; the result is (H, W)
        or, with the visible image's chroma, (H, W, 3). A batch: (B, H, W, 3) or (B, H, W), and (B, H, W). Lists may
        mix sizes. An infrared image with three channels becomes its luma.

        With ``color="ycbcr"`` a gray (H, W) visible image gives a gray result. With ``"auto"`` so does one whose
        three channels are equal; of a batch array all results are coloured if one of the images is.

        Arrays on the GPU (``__cuda_array_interface__`` or DLPack: CuPy, PyTorch, PyCUDA) are taken as the graph takes
        them, and the result is on the GPU: uint8 images with an image-in, image-out engine, in the order of channels
        that it was exported for, else padded float32 planes. They run on ``stream`` if given, which is then not
        waited for, and into ``out`` if given.

        Raises:
            InputError: arrays that are no images, sizes that differ or that the artifact does not take, or a colour
                that it cannot give.
            ArtifactError: the result is not finite.
            DeviceError: the device failed.
        """
        if color not in COLORS:
            raise InputError(f"unknown color {color!r}", f"use one of {', '.join(COLORS)}")
        if self.contract.decision_inputs:
            raise InputError(f"{self.name} ranks nothing itself: it needs decisions", "hand them to given(...)")
        if is_on_gpu(visible) or is_on_gpu(infrared):
            return self._fuse_on_gpu(visible, infrared, color, stream, out)
        if stream is not None or out is not None:
            raise InputError("stream and out are for arrays on the GPU", "leave them out")
        if isinstance(visible, (list, tuple)):
            if not isinstance(infrared, (list, tuple)) or len(visible) != len(infrared):
                count = len(infrared) if isinstance(infrared, (list, tuple)) else "no list"
                raise InputError(f"{len(visible)} visible images, infrared: {count}", "give two lists of equal length")
            return self._fuse(visible, infrared, [color] * len(visible), numbered=True)
        if not _batched(visible):
            return self._fuse([visible], [infrared], [color], numbered=False)[0]
        if len(visible) != len(infrared) or not _batched(infrared):
            raise InputError(
                f"visible batch {visible.shape}, infrared {np.shape(infrared)}", "give batches of equal length"
            )
        if color == "auto":
            color = "ycbcr" if any(images.is_coloured(image) for image in visible) else "gray"
        return np.stack(self._fuse(list(visible), list(infrared), [color] * len(visible), numbered=True))

    def submit(self, visible: Any, infrared: Any, color: Color = "auto") -> Future[Any]:
        """Return at once; the future's result is what calling the fuser returns or raises.

        The arrays must not change before the future is done. Nothing limits how many calls wait: a caller who is
        faster than the device should use :meth:`stream`.

        Raises:
            InputError: the fuser is closed.
        """
        with self._starting:
            if self._closed:
                raise self._closed_error()
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self.contexts, "upfusion-submit")
            return self._executor.submit(self, visible, infrared, color)

    def stream(self, pairs: Iterable[Item], color: Color = "auto", *, ahead: int | None = None) -> Iterator[Outcome]:
        """Yield an :class:`Outcome` per pair, in order, from any iterable of pairs of files or of arrays.

        Reading, running and whatever the caller does with the images overlap. At most ``ahead`` pairs (three more
        than contexts by default) are under way at a time, so an endless iterable is fine. A pair that fails does not
        end the stream: its outcome raises when the image is asked for.
        """

        def fuse(item: Item) -> Fused:
            first, second = images_of(item)
            fused: Fused = self(first, second, color)
            return fused

        return streaming.stream(
            itertools.repeat(fuse), pairs, threads=self.contexts + 1, ahead=ahead or self.contexts + 3
        )

    def ranked(self, visible: Image, infrared: Image, color: Color = "auto") -> tuple[Fused, Decisions]:
        """Return the fused image of one pair and the decisions behind it, for :meth:`given` of another artifact.

        Raises:
            InputError: the artifact does not show its decisions; or as calling the fuser does.
        """
        if not self.contract.decision_outputs:
            raise InputError(f"{self.name} does not show what it decides", "export it with --expose-ranks")
        decided: dict[str, npt.NDArray[Any]] = {}
        (fused,) = self._fuse([visible], [infrared], [color], numbered=False, decided=decided)
        return fused, decided

    def given(self, visible: Image, infrared: Image, decisions: Decisions, color: Color = "auto") -> Fused:
        """Return the fused image of one pair, computed with these decisions.

        Raises:
            InputError: the artifact takes no decisions, or others; or as calling the fuser does.
        """
        if missing := sorted({spec.name for spec in self.contract.decision_inputs} ^ decisions.keys()):
            raise InputError(
                f"{self.name} takes other decisions than it is given: {', '.join(missing)}",
                "the artifact that takes them is exported with --ranking given, from the same checkpoint",
            )
        return self._fuse([visible], [infrared], [color], numbered=False, given=decisions)[0]

    def provenance(self) -> dict[str, str]:
        """Return what a file with a fused image should say about where it comes from."""
        return {
            "software": f"upfusion {__version__}",
            "artifact": self.name,
            "sha256": self._sha256,
            "checkpoint": self._source,
            "device": self.device,
        }

    def close(self) -> None:
        """Wait for running calls and give the device's memory back. A second call does nothing."""
        with self._starting:
            if self._closed:
                return
            self._closed = True
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        for _ in self._workers:
            self._idle.get()
        self._idle.put(None)
        for worker in reversed(self._workers):
            worker.backend.close()

    def __enter__(self) -> Fuser:
        """Return the fuser itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def warm_up(self) -> None:
        """Run twice in every context at the size the artifact is tuned for, so that the first real call is not slow.

        Twice, because engines capture their CUDA graph when a size comes again.
        """
        height, width = self.contract.sizes.optimum
        ramp = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)
        with contextlib.ExitStack() as held:
            for worker in [held.enter_context(self._worker()) for _ in self._workers]:
                for _ in range(2):
                    self._run(worker, [ramp] * self.contract.batch, [ramp] * self.contract.batch)

    def graph_inputs(self, visible: Image, infrared: Image) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs for one pair, in arrays of the caller's own: what the network itself is fed.

        Raises:
            InputError: as calling the fuser does.
        """
        images.check_sizes(visible, infrared, "visible image", "infrared image")
        self._images.check_types(visible, infrared)
        first = flipped(visible) if self._bgr_caller else visible
        with self._worker() as worker:
            return {name: array.copy() for name, array in self._filled(worker, [first], [infrared]).items()}

    def parts_ms(self, visible: Image, infrared: Image, color: Color = "auto") -> dict[str, float]:
        """Fuse one pair and return where the time goes, in milliseconds.

        ``prepare`` and ``finish`` are the host's; between them ``copy_in``, ``compute`` and ``copy_out`` on the
        device's clock and without a CUDA graph, or ``run`` for backends that do not tell them apart. What is missing
        to a call's duration is waiting for a worker, and the launch.
        """
        clock = time.perf_counter
        with self._worker() as worker:
            start = clock()
            first = flipped(visible) if self._bgr_caller else visible
            inputs = self._filled(worker, [first], [infrared])
            filled = clock()
            if isinstance(worker.backend, TimedBackend):
                parts = worker.backend.parts_ms(inputs)
                outputs = worker.backend.run(inputs)
            else:
                outputs = worker.backend.run(inputs)
                parts = {"run": (clock() - filled) * 1e3}
            ran = clock()
            self._images.image(outputs, 0, first, color, worker.scratch)
            return {"prepare": (filled - start) * 1e3, **parts, "finish": (clock() - ran) * 1e3}

    def _fuse_on_gpu(self, visible: Any, infrared: Any, color: Color, stream: object, out: Any) -> Any:
        """Return the fused image of arrays on the GPU, on the GPU."""
        if not (is_on_gpu(visible) and is_on_gpu(infrared)):
            raise InputError("one image is on the GPU and one in host memory", "put both images in one place")
        output = self.contract.outputs[0].name
        if color == "gray" and self.contract.gives_luma:
            output = LUMA_OUTPUT
        elif color not in ("auto", self.contract.color):
            raise InputError(
                f"on the GPU the artifact gives {self.contract.color}, not {color}",
                f"export with --io image --color {color}",
            )
        one, two = (spec.name for spec in self.contract.inputs)
        with self._worker() as worker:
            if not isinstance(worker.backend, GpuBackend):
                raise InputError(f"{self.name} on {self.device} takes arrays in host memory", "pass numpy arrays")
            result = worker.backend.run_on_device(
                {one: visible, two: infrared},
                output,
                single=len(shape_of(visible)) == len(self.contract.inputs[0].shape) - 1,
                stream=stream,
                out=out,
            )
        return result if out is None else out

    def _fuse(
        self,
        firsts: Sequence[Any],
        seconds: Sequence[Any],
        colors: Sequence[Color],
        *,
        numbered: bool,
        given: Decisions | None = None,
        decided: dict[str, npt.NDArray[Any]] | None = None,
    ) -> list[Fused]:
        """Return the fused images, running neighbours of equal size together.

        Of a single pair, ``given`` are the decisions to compute with, and ``decided`` receives those that came out.
        """
        sizes = []
        for place, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
            number = f" {place}" if numbered else ""
            images.check_image(first, f"visible image{number}")
            images.check_image(second, f"infrared image{number}")
            images.check_sizes(first, second, f"visible image{number}", f"infrared image{number}")
            self._images.check_types(first, second)
            sizes.append(self._images.size(first.shape[0], first.shape[1]))
        if self._bgr_caller:
            firsts = [flipped(first) for first in firsts]
        results: list[Fused] = []
        start = 0
        while start < len(firsts):
            stop = start + 1
            while stop < len(firsts) and stop - start < self._most and sizes[stop] == sizes[start]:
                stop += 1
            with self._worker() as worker:
                outputs = self._run(worker, firsts[start:stop], seconds[start:stop], given)
                if decided is not None:
                    decided |= {spec.name: outputs[spec.name].copy() for spec in self.contract.decision_outputs}
                for place in range(start, stop):
                    image = self._images.image(outputs, place - start, firsts[place], colors[place], worker.scratch)
                    results.append(np.ascontiguousarray(flipped(image) if self._bgr_caller else image))
            start = stop
        return results

    def _run(
        self, worker: _Worker, firsts: Sequence[Image], seconds: Sequence[Image], given: Decisions | None = None
    ) -> Arrays:
        """Return the graph's outputs for images of one graph size: views of the backend's buffers."""
        return worker.backend.run(self._filled(worker, firsts, seconds, given))

    def _filled(
        self, worker: _Worker, firsts: Sequence[Image], seconds: Sequence[Image], given: Decisions | None = None
    ) -> Arrays:
        """Return the backend's input buffers with images of one graph size in them, and decisions if it takes any."""
        inputs = worker.buffers(self._images.shapes(len(firsts), firsts[0].shape[0], firsts[0].shape[1]))
        self._images.fill(inputs, firsts, seconds, worker.scratch)
        for spec in self.contract.decision_inputs:
            if given is None:  # a warm-up, where any will do
                fill_natural(inputs[spec.name])
            else:
                np.copyto(inputs[spec.name], given[spec.name])
        return inputs

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_Worker]:
        """Lend an idle worker.

        Raises:
            InputError: the fuser is closed.
        """
        worker = self._idle.get()
        if worker is None:
            self._idle.put(None)
            raise self._closed_error()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def _closed_error(self) -> InputError:
        """Return the error of a call that comes too late."""
        return InputError(f"{self.name} is closed", "call upfusion.runtime.load again")


class _Worker:
    """A backend with input buffers: its own, or arrays kept here for the shapes used last."""

    def __init__(self, backend: Backend, contract: Contract) -> None:
        self.backend = backend
        self.buffers: Callable[[Mapping[str, Shape]], Arrays] = (
            backend.buffers if isinstance(backend, BufferedBackend) else self._arrays
        )
        self.scratch = images.Scratch()
        self._types = {spec.name: spec.dtype for spec in contract.all_inputs}
        self._last: tuple[Mapping[str, Shape], Arrays] = ({}, {})

    def _arrays(self, shapes: Mapping[str, Shape]) -> Arrays:
        """Return numpy arrays, for a backend without buffers."""
        if self._last[0] != shapes:
            self._last = (shapes, {name: np.zeros(shape, self._types[name]) for name, shape in shapes.items()})
        return self._last[1]


def _batched(image: Any) -> bool:
    """Whether an array holds several images."""
    return bool(np.ndim(image) == 4 or (np.ndim(image) == 3 and np.shape(image)[2] > _MOST_CHANNELS))
