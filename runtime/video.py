"""Fuse two videos frame by frame into a third, which is playable however the work ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from upfusion.runtime.errors import InputError, UPFusionError
from upfusion.runtime.files import replacing
from upfusion.runtime.graph_images import Color
from upfusion.runtime.images import Image
from upfusion.runtime.streaming import Outcome

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm")
"""Files that are taken for videos."""

_CODES = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
"""Suffix of the output -> codec that OpenCV's wheels can write."""

_FPS_APART = 0.01
"""Frame rates that differ by more than this share drift apart by a frame within a few seconds."""


_CODEC_TINT = 8
"""Gray frames come back from a lossy codec with channels that differ by a few levels; colour differs by more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoResult:
    """What was written."""

    frames: int
    fps: float
    size: tuple[int, int]
    """Height and width."""
    color: Color
    left_over: str
    """Which input went on after the other ended; empty if both ended together."""
    stopped: bool
    """Whether the user stopped it before the end."""


class FusesFrames(Protocol):
    """What fuses a video: ``Fuser``, or ``HeldRanking``."""

    def stream(self, pairs: Iterable[tuple[Image, Image]], color: Color = ..., /) -> Iterator[Outcome]:
        """Yield the outcome of each pair, in order."""

    def provenance(self) -> Mapping[str, object]:
        """Return what the video should say about where it comes from."""


def is_video(path: Path) -> bool:
    """Whether a file is a video by its suffix."""
    return path.suffix.lower() in SUFFIXES


def fuse_video(
    fuser: FusesFrames,
    visible: Path,
    infrared: Path,
    output: Path,
    *,
    color: Color = "auto",
    started: Callable[[int], None] = lambda frames: None,
    done: Callable[[], None] = lambda: None,
    checked: Callable[[], None] = lambda: None,
) -> VideoResult:
    """Write the fused video; frame n is made of frame n of both inputs.

    It ends with the shorter input, or when the user interrupts: what was fused by then is kept and playable.
    ``started`` is called once with the expected number of frames (0: unknown), ``done`` after each frame, and
    ``checked`` for each frame that is found again in the finished file. ``color`` ``auto`` is decided by the first
    frame.

    Raises:
        InputError: a file cannot be opened, the frame rates or sizes do not agree, a frame has another size than the
            first, or the output cannot be written completely. No output is left behind.
    """
    import cv2

    code = _CODES.get(output.suffix.lower())
    if code is None:
        raise InputError(
            f"{output}: cannot write {output.suffix or 'a video without a suffix'}", f"use {', '.join(_CODES)}"
        )
    with _Reader(visible) as first, _Reader(infrared) as second:
        _check_together(first, second)
        started(min(first.frames, second.frames))
        height, width = first.size
        frames, stopped, left_over = 0, False, ""

        def pairs() -> Iterator[tuple[Image, Image]]:
            nonlocal left_over
            while True:
                one, two = first.read(), second.read()
                if one is None or two is None:
                    left_over = str(visible) if one is not None else str(infrared) if two is not None else ""
                    return
                yield cv2.cvtColor(one, cv2.COLOR_BGR2RGB), cv2.cvtColor(two, cv2.COLOR_BGR2GRAY)  # type: ignore[misc]

        if color == "auto":
            color = "ycbcr" if first.coloured else "gray"
        with replacing(output) as temporary:
            writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*code), first.fps, (width, height))
            try:
                if not writer.isOpened():
                    raise InputError(
                        f"{output}: this OpenCV cannot write {code} into {output.suffix}", "choose .avi instead"
                    )
                try:
                    for outcome in fuser.stream(pairs(), color):
                        try:
                            image = outcome.result()
                        except UPFusionError as error:
                            raise type(error)(f"frame {frames}: {error.problem}", error.hint) from error
                        writer.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR))
                        frames += 1
                        done()
                except KeyboardInterrupt:
                    stopped = True
            finally:
                writer.release()
            # The signal may have come between the writing of a frame and the counting of it.
            frames = _frames_written(temporary, output, frames, checked)
    with replacing(output.with_name(output.name + ".json")) as temporary:
        record = {**fuser.provenance(), "visible": visible.name, "infrared": infrared.name, "frames": frames}
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return VideoResult(frames=frames, fps=first.fps, size=first.size, color=color, left_over=left_over, stopped=stopped)


def _check_together(visible: _Reader, infrared: _Reader) -> None:
    """Raise unless two videos have one frame rate and one size.

    Raises:
        InputError: with the command that brings the second to the first's.
    """
    first, second, fps = visible.path, infrared.path, visible.fps
    if abs(fps - infrared.fps) > _FPS_APART * fps:
        raise InputError(
            f"{first} has {fps:g} frames per second, {second} has {infrared.fps:g}",
            f"bring both to one rate: ffmpeg -i {second} -r {fps:g} {second.stem}_{fps:g}fps.mp4",
        )
    if visible.size != infrared.size:
        (height, width), (other_height, other_width) = visible.size, infrared.size
        raise InputError(
            f"{first} has {height}x{width} pixels (height x width), {second} has {other_height}x{other_width}",
            "the frames must show the same view, pixel on pixel; if only the size differs: "
            f"ffmpeg -i {second} -vf scale={width}:{height} {second.stem}_{height}x{width}.mp4",
        )


def _frames_written(written: Path, output: Path, frames: int, checked: Callable[[], None]) -> int:
    """Return how many frames the file that was written holds: every one; OpenCV's writer reports no failure.

    Raises:
        InputError: frames are missing.
    """
    if frames == 0:
        raise InputError(f"no frame was fused, so {output} was not written", "check that both inputs play")
    with _Reader(written) as check:
        found = 0
        while check.grab():
            found += 1
            checked()
    if found < frames:
        raise InputError(
            f"{output} would hold {found} of {frames} frames", "is the disk full? free some space and start again"
        )
    return found


class _Reader:
    """A video file, frame by frame."""

    def __init__(self, path: Path) -> None:
        import cv2

        if not path.is_file():
            raise InputError(f"{path}: no such file", "check the path")
        self.path = path
        self._capture: Any = cv2.VideoCapture(str(path))
        first: Any = self._capture.read()[1] if self._capture.isOpened() else None
        if first is None:
            self._capture.release()
            raise InputError(f"{path}: not a video that OpenCV can read", f"convert it: ffmpeg -i {path} x.mp4")
        self._next: npt.NDArray[np.uint8] | None = first
        self.size: tuple[int, int] = (first.shape[0], first.shape[1])
        self.coloured = bool(np.ptp(first, axis=2).max() > _CODEC_TINT)
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS)) or 25.0
        self.frames = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self._read = 0

    def read(self) -> npt.NDArray[np.uint8] | None:
        """Return the next frame (H, W, 3) in BGR, or None at the end.

        Raises:
            InputError: the frame has another size than the first.
        """
        frame, self._next = self._next, None
        if frame is None:
            frame = self._capture.read()[1]
        if frame is not None and frame.shape[:2] != self.size:
            raise InputError(
                f"{self.path}: frame {self._read} has {frame.shape[0]}x{frame.shape[1]} pixels (height x width), "
                f"the first one has {self.size[0]}x{self.size[1]}",
                f"bring all frames to one size: ffmpeg -i {self.path} -vf scale={self.size[1]}:{self.size[0]} x.mp4",
            )
        self._read += 1
        return frame

    def grab(self) -> bool:
        """Go one frame further without decoding it; the first call counts the frame read at the start."""
        if self._next is not None:
            self._next = None
            return True
        return bool(self._capture.grab())

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *details: object) -> None:
        self._capture.release()
