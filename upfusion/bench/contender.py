"""One artifact of a benchmark: opened, with the images that it is fed, and ways to call it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from upfusion.bench.machine import resident_bytes
from upfusion.runtime.artifact import open_backend
from upfusion.runtime.backends.base import Backend, SharedBackend
from upfusion.runtime.errors import InputError
from upfusion.runtime.fuser import Fuser
from upfusion.runtime.images import Image
from upfusion.runtime.manifest import Contract, Manifest

ImagePair = tuple[Image, Image]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A loaded artifact."""

    name: str
    path: Path
    backend: Backend
    contract: Contract
    manifest: Manifest | None
    """None for a checkpoint, which has none."""
    load_seconds: float
    grown_bytes: int | None
    """What loading added to the process's resident memory; None where the system does not tell."""


def opened(path: Path, device: str = "auto", options: Any = None, name: str | None = None) -> Opened:
    """Load an ONNX file or an engine; arguments and errors are those of :func:`upfusion.runtime.fuser.load`."""

    def opening() -> tuple[Backend, Contract, Manifest]:
        backend, manifest = open_backend(path, device, options)
        return backend, manifest.contract, manifest

    return opened_by(opening, path, name or path.name)


def opened_by(opening: Callable[[], tuple[Backend, Contract, Manifest | None]], path: Path, name: str) -> Opened:
    """Return what ``opening`` loads, with the time and the memory that it took."""
    before, start = resident_bytes(), time.perf_counter()
    backend, contract, manifest = opening()
    seconds, after = time.perf_counter() - start, resident_bytes()
    return Opened(
        name=name,
        path=path,
        backend=backend,
        contract=contract,
        manifest=manifest,
        load_seconds=seconds,
        grown_bytes=None if before is None or after is None else after - before,
    )


class Contender:
    """An artifact and image pairs of one size, which its calls take in turn.

    ``call`` is what a user waits for: uint8 images in host memory to uint8 images in host memory. ``bare_ms`` is
    ``InferenceSession.run`` alone, on inputs that were prepared beforehand: what it takes less than a call is ours.
    """

    def __init__(
        self, artifact: Opened, pairs: Sequence[ImagePair], contexts: int = 1, max_batch: int | None = None
    ) -> None:
        """Take over the artifact; it is closed with the contender.

        Raises:
            InputError: several contexts of a backend that has one.
        """
        if contexts > 1 and not isinstance(artifact.backend, SharedBackend):
            raise InputError(f"{artifact.name} on {artifact.backend.device} runs in one context only", "--contexts 1")
        self.artifact = artifact
        self.name = artifact.name
        self.pairs = list(pairs)
        self.size: tuple[int, int] = (pairs[0][0].shape[0], pairs[0][0].shape[1])
        self.open_batch = isinstance(artifact.contract.inputs[0].shape[0], str)
        """Whether the graph takes any number of pairs at once."""
        self.pairs_per_call = artifact.contract.batch
        self.fuser = Fuser(
            artifact.backend, artifact.contract, name=artifact.name, contexts=contexts, max_batch=max_batch
        )
        self._next = 0
        self._session = getattr(artifact.backend, "session", None)
        self._inputs: dict[str, Any] = {}

    @property
    def has_bare(self) -> bool:
        """Whether there is an ``InferenceSession`` beneath."""
        return self._session is not None

    def call(self, first: int, count: int) -> None:
        """Fuse ``count`` pairs from number ``first`` on, round and round, in one call; the images are given away."""
        chosen = [self.pairs[(first + place) % len(self.pairs)] for place in range(count)]
        if count == 1:
            self.fuser(*chosen[0])
        else:
            self.fuser([visible for visible, _ in chosen], [infrared for _, infrared in chosen])

    def call_ms(self) -> float:
        """Return the milliseconds of one call with the next pairs, as many as the graph takes at once."""
        start = time.perf_counter()
        self.call(self._next, self.pairs_per_call)
        elapsed = (time.perf_counter() - start) * 1e3
        self._next += self.pairs_per_call
        return elapsed

    def bare_ms(self) -> float:
        """Return the milliseconds of one bare ``InferenceSession.run`` on the inputs of the first pair."""
        assert self._session is not None
        if not self._inputs:
            self._inputs = self.fuser.graph_inputs(*self.pairs[0])
        start = time.perf_counter()
        self._session.run(None, self._inputs)
        return (time.perf_counter() - start) * 1e3

    def parts_ms(self) -> dict[str, float]:
        """Return where the time of one call for one pair goes."""
        return self.fuser.parts_ms(*self.pairs[0])

    def close(self) -> None:
        """Give everything back."""
        self.fuser.close()

    def __enter__(self) -> Contender:
        """Return the contender itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def scaled(pair: ImagePair, size: tuple[int, int]) -> ImagePair:
    """Return a pair scaled to (height, width): by area where it shrinks, linearly where it grows."""
    import cv2

    height, width = size
    first, second = (
        image
        if image.shape[:2] == size
        else cv2.resize(
            np.ascontiguousarray(image),
            (width, height),
            interpolation=cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR,
        )
        for image in pair
    )
    return first, second  # type: ignore[return-value]
