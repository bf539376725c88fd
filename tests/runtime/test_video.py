"""Videos: frames in step, a clean stop, and what is said when the inputs do not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from upfusion.runtime import video
from upfusion.runtime.errors import InputError
from upfusion.runtime.fuser import load
from upfusion.runtime.video import fuse_video


def frame(number: int, size: tuple[int, int]) -> np.ndarray:
    """A flat image whose brightness is its number: survives any codec."""
    return np.full((*size, 3), 10 + 20 * number, np.uint8)


def write(path: Path, frames: int, size: tuple[int, int] = (48, 64), fps: float = 10, tint: int = 0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size[::-1])
    assert writer.isOpened()
    for number in range(frames):
        image = frame(number, size)
        image[..., 2] = np.minimum(image[..., 2].astype(int) + tint, 255)
        writer.write(image)
    writer.release()
    return path


def read(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (image := capture.read()[1]) is not None:
        frames.append(image)
    return frames


@pytest.fixture
def fuser(tmp_path: Path, make: Any) -> Any:
    with load(make.onnx(tmp_path / "tiny.onnx", make.tensor_contract()), options=make.options) as loaded:
        yield loaded


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_frames_stay_in_step(tmp_path: Path, fuser: Any, suffix: str) -> None:
    visible, infrared = write(tmp_path / "v.avi", 6), write(tmp_path / "i.avi", 6)
    events: list[int] = []
    output = tmp_path / f"fused{suffix}"
    result = fuse_video(
        fuser,
        visible,
        infrared,
        output,
        started=events.append,
        done=lambda: events.append(0),
        checked=lambda: events.append(-1),
    )
    assert events == [6] + [0] * 6 + [-1] * 6
    assert (result.frames, result.size, result.color) == (6, (48, 64), "gray")
    assert (result.left_over, result.stopped) == ("", False)
    frames = read(output)
    assert len(frames) == 6
    for number, image in enumerate(frames):
        # Two lossy codecs in a row; neighbouring frames are 20 levels apart.
        assert abs(image.mean() - (10 + 20 * number)) < 8
    record = json.loads((tmp_path / f"fused{suffix}.json").read_text())
    assert record["frames"] == 6
    assert record["artifact"] == "tiny.onnx"


def test_colour_is_decided_once(tmp_path: Path, fuser: Any) -> None:
    visible, infrared = write(tmp_path / "v.avi", 2, tint=90), write(tmp_path / "i.avi", 2)
    result = fuse_video(fuser, visible, infrared, tmp_path / "fused.avi")
    assert result.color == "ycbcr"
    image = read(tmp_path / "fused.avi")[0].astype(int)
    assert (image[..., 2] - image[..., 0]).mean() > 60


def test_the_shorter_video_ends_it(tmp_path: Path, fuser: Any) -> None:
    visible, infrared = write(tmp_path / "v.avi", 6), write(tmp_path / "i.avi", 4)
    result = fuse_video(fuser, visible, infrared, tmp_path / "fused.avi")
    assert result.frames == 4
    assert result.left_over == str(visible)


def test_an_interrupted_video_is_playable(tmp_path: Path, fuser: Any) -> None:
    visible, infrared = write(tmp_path / "v.avi", 9), write(tmp_path / "i.avi", 9)
    count = 0

    def done() -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    result = fuse_video(fuser, visible, infrared, tmp_path / "fused.mp4", done=done)
    assert result.stopped
    assert len(read(tmp_path / "fused.mp4")) == result.frames == 3


def test_inputs_that_do_not_go_together(tmp_path: Path, fuser: Any) -> None:
    good = write(tmp_path / "v.avi", 2)
    with pytest.raises(InputError, match=r"has 10 frames per second, .* has 15") as caught:
        fuse_video(fuser, good, write(tmp_path / "fast.avi", 2, fps=15), tmp_path / "fused.mp4")
    assert "ffmpeg" in caught.value.hint
    with pytest.raises(InputError, match=r"48x64 pixels .* has 32x64") as caught:
        fuse_video(fuser, good, write(tmp_path / "flat.avi", 2, size=(32, 64)), tmp_path / "fused.mp4")
    assert "scale=64:48" in caught.value.hint
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(InputError, match=r"text\.mp4: not a video"):
        fuse_video(fuser, good, tmp_path / "text.mp4", tmp_path / "fused.mp4")
    with pytest.raises(InputError, match=r"none\.mp4: no such file"):
        fuse_video(fuser, good, tmp_path / "none.mp4", tmp_path / "fused.mp4")
    with pytest.raises(InputError, match=r"cannot write \.gif"):
        fuse_video(fuser, good, good, tmp_path / "fused.gif")
    assert not list(tmp_path.glob("*fused*"))
    assert not list(tmp_path.glob(".partial*"))


def test_a_frame_of_another_size_is_named(tmp_path: Path, fuser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    visible, infrared = write(tmp_path / "v.avi", 5), write(tmp_path / "i.avi", 5)
    real, count = video._Reader.read, [0]

    class Changing:
        """A capture whose fourth frame is smaller."""

        def __init__(self, capture: Any) -> None:
            self.capture = capture

        def read(self) -> Any:
            count[0] += 1
            good, image = self.capture.read()
            return (good, image[:40]) if count[0] == 3 else (good, image)

        def release(self) -> None:
            self.capture.release()

    def patched(self: Any) -> Any:
        if self.path == infrared and not isinstance(self._capture, Changing):
            self._capture = Changing(self._capture)
        return real(self)

    monkeypatch.setattr(video._Reader, "read", patched)
    with pytest.raises(InputError, match=r"i\.avi: frame 3 has 40x64 pixels .* first one has 48x64"):
        fuse_video(fuser, visible, infrared, tmp_path / "fused.mp4")
    assert not (tmp_path / "fused.mp4").exists()


def test_frames_that_did_not_reach_the_disk_are_missed(
    tmp_path: Path, fuser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible, infrared = write(tmp_path / "v.avi", 5), write(tmp_path / "i.avi", 5)
    real = cv2.VideoWriter

    class Full:
        """A writer that drops frames without a word, as OpenCV's does when the disk is full."""

        fourcc = staticmethod(real.fourcc)

        def __init__(self, *arguments: Any) -> None:
            self.writer, self.count = real(*arguments), 0

        def isOpened(self) -> bool:  # noqa: N802
            return self.writer.isOpened()

        def write(self, image: Any) -> None:
            self.count += 1
            if self.count <= 2:
                self.writer.write(image)

        def release(self) -> None:
            self.writer.release()

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with pytest.raises(InputError, match="would hold 2 of 5 frames") as caught:
        fuse_video(fuser, visible, infrared, tmp_path / "fused.avi")
    assert "disk full" in caught.value.hint
    assert not (tmp_path / "fused.avi").exists()


def test_a_frame_that_the_artifact_refuses_is_numbered(tmp_path: Path, make: Any) -> None:
    visible, infrared = write(tmp_path / "v.avi", 2), write(tmp_path / "i.avi", 2)
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract(make.one_size(32, 32)))
    with load(path, options=make.options) as fuser, pytest.raises(InputError, match="frame 0: the images have 48x64"):
        fuse_video(fuser, visible, infrared, tmp_path / "fused.mp4")
    assert not (tmp_path / "fused.mp4").exists()
