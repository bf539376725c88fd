"""stream() and submit(): order, bounded memory, overlap, failures in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upfusion.runtime import streaming
from upfusion.runtime.errors import InputError
from upfusion.runtime.fuser import Fuser, load
from upfusion.runtime.images import write_image
from upfusion.runtime.pairs import find_pairs


class Echo:
    """Gives the infrared image back, after a pause as long as its first pixel says (in milliseconds)."""

    device = "echo"

    def __init__(self, running: list[int] | None = None) -> None:
        self.running = running if running is not None else [0, 0]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.running[0] += 1
        self.running[1] = max(self.running)
        time.sleep(float(inputs["infrared"].flat[0]) * 255 / 1000)
        self.running[0] -= 1
        return {"fused": inputs["infrared"]}

    def another(self) -> Echo:
        return Echo(self.running)

    def close(self) -> None:
        pass


def pair(value: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((8, 8, 3), np.uint8), np.full((8, 8), value, np.uint8)


@pytest.mark.parametrize("contexts", [1, 3])
def test_order_is_kept(make: Any, contexts: int) -> None:
    with Fuser(Echo(), make.tensor_contract(), contexts=contexts) as fuser:
        values = [20, 1, 9, 0, 15, 3, 2] * 3
        outcomes = list(fuser.stream(pair(value) for value in values))
    assert [int(outcome.result()[0, 0]) for outcome in outcomes] == values
    assert all(outcome.item[1][0, 0] == value for outcome, value in zip(outcomes, values, strict=True))


def test_an_endless_iterable_is_pulled_only_as_needed(make: Any) -> None:
    pulled = 0

    def endless() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pair(0)

    fuser = Fuser(Echo(), make.tensor_contract())
    outcomes = fuser.stream(endless(), ahead=3)
    assert pulled == 0
    for _ in range(10):
        next(outcomes)
        time.sleep(0.005)  # time to run ahead, if it could
    assert 10 <= pulled <= 10 + 3
    outcomes.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upfusion-")]


def test_contexts_run_at_the_same_time(make: Any) -> None:
    for contexts, expected in ((1, 1), (3, 3)):
        echo = Echo()
        with Fuser(echo, make.tensor_contract(), contexts=contexts) as fuser:
            list(fuser.stream(pair(20) for _ in range(9)))
        assert echo.running[1] == expected


def test_reading_running_and_writing_overlap(make: Any) -> None:
    """Ten pairs of 15 ms each for reading, running and writing take 450 ms one after another."""

    def slow() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for _ in range(10):
            time.sleep(0.015)
            yield pair(15)

    fuser = Fuser(Echo(), make.tensor_contract())
    start = time.perf_counter()
    for outcome in fuser.stream(slow()):
        outcome.result()
        time.sleep(0.015)
    assert time.perf_counter() - start < 0.45 / 1.2


def test_a_failing_pair_is_named_and_the_rest_goes_on(tmp_path: Path, make: Any, noise: Any) -> None:
    for folder, channels in (("a", (3,)), ("b", ())):
        (tmp_path / folder).mkdir()
        for name in ("1", "2", "3", "4"):
            size = (640, 640) if name == "4" else (16, 24)
            write_image(tmp_path / folder / f"{name}.png", noise((*size, *channels)))
    (tmp_path / "b" / "2.png").write_bytes(b"broken")
    with load(make.onnx(tmp_path / "tiny.onnx", make.tensor_contract()), options=make.options) as fuser:
        outcomes = list(fuser.stream(find_pairs(tmp_path / "a", tmp_path / "b")))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, False]
    with pytest.raises(InputError, match=r"b/2\.png: not an image"):
        outcomes[1].result()
    with pytest.raises(InputError, match=r"a/4\.png: the images have 640x640 pixels"):
        outcomes[3].result()


def test_bugs_and_broken_iterables_end_the_stream(make: Any) -> None:
    class Buggy(Echo):
        def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Fuser(Buggy(), make.tensor_contract()).stream([pair(0)] * 5))

    def broken() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield pair(0)
        raise KeyError("camera")

    outcomes = Fuser(Echo(), make.tensor_contract()).stream(broken())
    next(outcomes).result()
    with pytest.raises(KeyError, match="camera"):
        next(outcomes)


def test_a_camera_that_stands_still_does_not_hold_up_the_end(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PATIENCE_S", 0.05)
    next_frame = threading.Event()

    def camera() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield pair(1)
        next_frame.wait(30)
        yield pair(2)

    with Fuser(Echo(), make.tensor_contract()) as fuser:
        outcomes = fuser.stream(camera())
        assert int(next(outcomes).result()[0, 0]) == 1
        start = time.perf_counter()
        outcomes.close()
        assert time.perf_counter() - start < 10  # not the 30 s that the camera takes
    next_frame.set()


def test_submit(make: Any) -> None:
    fuser = Fuser(Echo(), make.tensor_contract(), contexts=2)
    futures = [fuser.submit(*pair(value)) for value in (9, 0, 3)]
    assert [int(future.result()[0, 0]) for future in futures] == [9, 0, 3]
    assert isinstance(fuser.submit(pair(0)[0], pair(0)[1][:, :7]).exception(), InputError)
    fuser.close()
    with pytest.raises(InputError, match="is closed"):
        fuser.submit(*pair(0))


def test_close_does_not_strand_waiting_callers(make: Any) -> None:
    fuser = Fuser(Echo(), make.tensor_contract())
    ended: list[object] = []

    def call() -> None:
        try:
            ended.append(fuser(*pair(50)))
        except InputError as error:
            ended.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    fuser.close()
    for thread in threads:
        thread.join(5)
    assert len(ended) == 4
    assert any(isinstance(result, np.ndarray) for result in ended)
