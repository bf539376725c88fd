"""Videos with rankings that hold for some frames: one artifact ranks every Nth frame, another fuses those between."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from upfusion.runtime import streaming
from upfusion.runtime.artifact import open_backend
from upfusion.runtime.decisions import Decisions, check_together
from upfusion.runtime.errors import InputError
from upfusion.runtime.fuser import Fuser, fuser_of
from upfusion.runtime.graph_images import Color, Fused
from upfusion.runtime.streaming import Item, Outcome, images_of


def load_held_ranking(
    ranker: str | Path,
    between: str | Path,
    every: int,
    *,
    device: str = "auto",
    contexts: int = 1,
    warm_up: bool | None = None,
    options: Any = None,
) -> HeldRanking:
    """Return what fuses videos with two artifacts of one network; other arguments are those of ``load``, for both.

    ``ranker`` was exported with ``--expose-ranks``, ``between`` with ``--ranking given``.

    Raises:
        ArtifactError: they do not go together; or as :func:`upfusion.runtime.fuser.load` does.
        InputError: ``every`` is not positive.
    """
    ranker, between = Path(ranker), Path(between)
    with contextlib.ExitStack() as on_failure:
        deciding, ranking = open_backend(ranker, device, options)
        on_failure.callback(deciding.close)
        taking, given = open_backend(between, device, options, takes_decisions=True)
        on_failure.callback(taking.close)
        check_together(ranker, ranking, between, given)
        first, second = (
            on_failure.enter_context(fuser_of(backend, manifest, name=path.name, contexts=contexts, warm_up=warm_up))
            for backend, manifest, path in ((deciding, ranking, ranker), (taking, given, between))
        )
        held = HeldRanking(first, second, every)
        on_failure.pop_all()
    return held


class HeldRanking:
    """Fuses the frames of a video with the channels ranked anew on every Nth of them.

    Frames 0, N, 2N, ... go through ``ranker``, which also says what it decided; the frames between go through
    ``between`` with the decisions of the last ranked frame. Both belong to this object and are closed with it.
    """

    def __init__(self, ranker: Fuser, between: Fuser, every: int) -> None:
        """Take over two fusers that :func:`upfusion.runtime.decisions.check_together` found to fit.

        Raises:
            InputError: ``every`` is not positive.
        """
        if every < 1:
            raise InputError(f"every={every}: channels are ranked on every frame at most", "use 1 or more")
        self.ranker, self.between, self.every = ranker, between, every
        self.device = ranker.device
        # Both share the device: as many frames are in work at a time as one of them alone would take.
        self._free = threading.Semaphore(ranker.contexts)

    def stream(self, frames: Iterable[Item], color: Color = "auto", *, ahead: int | None = None) -> Iterator[Outcome]:
        """Yield an :class:`Outcome` per frame, in order; everything as :meth:`Fuser.stream` has it.

        Where a ranked frame fails, so do the frames that wait for its decisions, with the same error.
        """
        contexts = self.ranker.contexts
        return streaming.stream(self._turns(color), frames, threads=contexts + 1, ahead=ahead or contexts + 3)

    def provenance(self) -> dict[str, object]:
        """Return what a fused video should say about where it comes from."""
        between = self.between.provenance()
        return {
            **self.ranker.provenance(),
            "ranked_every": self.every,
            "between": {name: between[name] for name in ("artifact", "sha256")},
        }

    def close(self) -> None:
        """Close both artifacts."""
        self.ranker.close()
        self.between.close()

    def __enter__(self) -> HeldRanking:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _turns(self, color: Color) -> Iterator[Callable[[Item], Fused]]:
        """Yield what fuses each frame.

        Frames wait for decisions inside the stream's threads. That cannot block it: threads take frames in order, so
        the frame that ranks is under way before any that waits for it.
        """
        while True:
            decided: Future[Decisions] = Future()
            yield partial(self._fuse_and_rank, decided, color)
            for _ in range(self.every - 1):
                yield partial(self._fuse_as_decided, decided, color)

    def _fuse_and_rank(self, decided: Future[Decisions], color: Color, frame: Item) -> Fused:
        """Fuse a frame and hand its decisions on."""
        try:
            images = images_of(frame)
            with self._free:
                fused, decisions = self.ranker.ranked(*images, color)
        except BaseException as error:  # whoever waits must learn of anything that went wrong
            decided.set_exception(error)
            raise
        decided.set_result(decisions)
        return fused

    def _fuse_as_decided(self, decided: Future[Decisions], color: Color, frame: Item) -> Fused:
        """Fuse a frame with an earlier frame's decisions."""
        images = images_of(frame)
        decisions = decided.result()
        with self._free:
            return self.between.given(*images, decisions, color)
