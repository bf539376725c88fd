"""Fuse a long or endless row of pairs: reading, running and the caller's writing overlap, order and memory are kept."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from upfusion.runtime.errors import UPFusionError
from upfusion.runtime.images import Image
from upfusion.runtime.pairs import Pair, read_pair

_PATIENCE_S = 1.0
"""How long a stream that is closed waits for its iterable: a camera that stands still must not hold up the end."""

Fused = npt.NDArray[np.uint8]
Item: TypeAlias = Pair | tuple[Image, Image]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one pair: an image, or the error that is raised when the image is asked for."""

    item: Item
    """The pair as it came out of the caller's iterable."""
    image: Fused | None
    error: UPFusionError | None

    def result(self) -> Fused:
        """Return the fused image.

        Raises:
            UPFusionError: this pair failed.
        """
        if self.error is not None:
            raise self.error
        assert self.image is not None
        return self.image


def stream(
    fuses: Iterator[Callable[[Item], Fused]], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Outcome]:
    """Yield one outcome per item, in order.

    ``fuses`` yields, for each item, what fuses it; it reads the item by :func:`images_of`. At most ``ahead`` items are
    between the iterable and the caller at any time. ``items`` and ``fuses`` are consumed in a thread of their own,
    ``threads`` others take the items in order and fuse them. A failure of our error family belongs to its pair and
    the rest goes on; any other exception, and one raised by ``items``, ends the stream and is raised here.
    """
    free = threading.Semaphore(ahead)
    stopped = threading.Event()
    window: queue.Queue[tuple[Item, Future[Outcome]] | BaseException | None] = queue.Queue()

    def feed() -> None:
        try:
            rest = iter(items)
            while free.acquire() and not stopped.is_set():
                try:
                    item = next(rest)
                except StopIteration:
                    break
                window.put((item, pool.submit(_outcome, next(fuses), item)))
            window.put(None)
        except BaseException as error:  # raised again in the caller's thread
            window.put(error)

    with ThreadPoolExecutor(threads, "upfusion-stream") as pool:
        feeder = threading.Thread(target=feed, name="upfusion-feed", daemon=True)
        feeder.start()
        try:
            while (entry := window.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                yield entry[1].result()
                free.release()
        finally:
            stopped.set()
            free.release()
            feeder.join(_PATIENCE_S)
            pool.shutdown(cancel_futures=True)


def images_of(item: Item) -> tuple[Image, Image]:
    """Return an item's images, read where they are on disk.

    Raises:
        InputError: a file cannot be read.
    """
    return read_pair(item) if isinstance(item, Pair) else item


def _outcome(fuse: Callable[[Item], Fused], item: Item) -> Outcome:
    """Fuse one item."""
    try:
        return Outcome(item=item, image=fuse(item), error=None)
    except UPFusionError as error:
        if isinstance(item, Pair) and not any(str(path) in error.problem for path in (item.first, item.second)):
            error = type(error)(f"{item.first}: {error.problem}", error.hint)
        return Outcome(item=item, image=None, error=error)
