"""Rankings that hold for some frames: who ranks which frame, who waits for whom, and what fails with whom."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upfusion.runtime.backends.null import NullBackend
from upfusion.runtime.decisions import check_together, fill_natural
from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.fuser import Fuser
from upfusion.runtime.held_ranking import HeldRanking
from upfusion.runtime.images import write_image
from upfusion.runtime.manifest import Contract, TensorSpec
from upfusion.runtime.pairs import Pair

ORDER = TensorSpec(name="scpm.order", dtype="int64", shape=(1, 3), meaning="channel indices")
MASK = TensorSpec(name="tcpm1.keep", dtype="bool", shape=(1, 1, 2, 2), meaning="kept entries")


def ranking(contract: Contract) -> Contract:
    return dataclasses.replace(contract, decision_outputs=(ORDER, MASK))


def taking(contract: Contract) -> Contract:
    return dataclasses.replace(contract, decision_inputs=(ORDER, MASK))


class Running:
    """How many are at work, and the most that ever were."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *details: object) -> None:
        with self.lock:
            self.now -= 1


class Ranker:
    """Gives the infrared image back; its level is the decision. Spies on the levels that it ranks."""

    device = "spy"

    def __init__(self, seen: list[int], running: Running | None = None) -> None:
        self.seen, self.running = seen, running or Running()

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        level = round(float(inputs["infrared"].flat[0]) * 255)
        with self.running:
            time.sleep(0.01)  # long enough for the frames behind it to come and wait
        self.seen.append(level)
        return {
            "fused": inputs["infrared"],
            "scpm.order": np.full((1, 3), level),
            "tcpm1.keep": np.full((1, 1, 2, 2), level % 2 == 0),
        }

    def another(self) -> Ranker:
        return Ranker(self.seen, self.running)

    def close(self) -> None:
        pass


class Taker:
    """Paints the level that was decided; spies on (frame, decision)."""

    device = "spy"

    def __init__(self, seen: list[tuple[int, int]], running: Running | None = None) -> None:
        self.seen, self.running = seen, running or Running()

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        decided = int(inputs["scpm.order"][0, 0])
        assert inputs["tcpm1.keep"].all() == (decided % 2 == 0)
        with self.running:
            time.sleep(0.002)
        self.seen.append((round(float(inputs["infrared"].flat[0]) * 255), decided))
        return {"fused": np.full_like(inputs["infrared"], decided / 255)}

    def another(self) -> Taker:
        return Taker(self.seen, self.running)

    def close(self) -> None:
        pass


def frame(level: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((8, 8, 3), np.uint8), np.full((8, 8), level, np.uint8)


@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize(("every", "count"), [(1, 4), (3, 8), (50, 9)])
def test_which_frames_are_ranked(make: Any, every: int, count: int, contexts: int) -> None:
    ranked: list[int] = []
    taken: list[tuple[int, int]] = []
    contract, running = make.tensor_contract(), Running()
    ranker = Fuser(Ranker(ranked, running), ranking(contract), contexts=contexts)
    between = Fuser(Taker(taken, running), taking(contract), contexts=contexts)
    with HeldRanking(ranker, between, every) as held:
        fused = [int(outcome.result()[0, 0]) for outcome in held.stream(frame(number) for number in range(count))]
    last = [number - number % every for number in range(count)]
    assert fused == last  # in order, each with its decisions
    assert running.most <= contexts  # a frame of one graph does not push in beside those of the other
    assert sorted(ranked) == sorted(set(last))
    assert sorted(taken) == [(number, last[number]) for number in range(count) if number != last[number]]


def test_frames_that_wait_for_a_failed_one_fail_too_and_the_rest_goes_on(make: Any, tmp_path: Path) -> None:
    """Also where it cannot even be read, so that nothing is ever decided."""
    for name, image in zip(("vis", "ir"), frame(9), strict=True):
        write_image(tmp_path / f"{name}.png", image)
    broken = Pair(name="b", first=tmp_path / "vis.png", second=tmp_path / "none.png")
    good = Pair(name="g", first=tmp_path / "vis.png", second=tmp_path / "ir.png")
    contract = make.tensor_contract()
    with HeldRanking(Fuser(Ranker([]), ranking(contract)), Fuser(Taker([]), taking(contract)), 2) as held:
        outcomes = list(held.stream([broken, good, good, good]))
    assert [outcome.error is None for outcome in outcomes] == [False, False, True, True]
    with pytest.raises(InputError, match=r"none\.png"):
        outcomes[1].result()


def test_an_ended_stream_leaves_no_thread(make: Any) -> None:
    contract = make.tensor_contract()
    with HeldRanking(Fuser(Ranker([]), ranking(contract)), Fuser(Taker([]), taking(contract)), 4) as held:
        stream = held.stream(frame(number % 256) for number in iter(int, 1))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upfusion-")]


def test_one_that_takes_decisions_wants_them(make: Any) -> None:
    contract = make.tensor_contract()
    decisions = {"scpm.order": np.zeros((1, 3), np.int64), "tcpm1.keep": np.ones((1, 1, 2, 2), bool)}
    with Fuser(NullBackend(taking(contract)), taking(contract), name="given.onnx") as taker:
        taker.warm_up()  # with any decisions
        assert taker.given(*frame(0), decisions).shape == (8, 8)
        with pytest.raises(InputError, match=r"given\.onnx ranks nothing itself"):
            taker(*frame(0))
        with pytest.raises(InputError, match=r"other decisions than it is given: tcpm1\.keep"):
            taker.given(*frame(0), {"scpm.order": decisions["scpm.order"]})
    with Fuser(NullBackend(contract), contract, name="mute.onnx") as mute:
        with pytest.raises(InputError, match=r"mute\.onnx does not show what it decides"):
            mute.ranked(*frame(0))
        with pytest.raises(InputError, match="other decisions"):
            mute.given(*frame(0), decisions)
    with pytest.raises(InputError, match="every=0"):
        HeldRanking(mute, taker, 0)


def test_natural_decisions_are_valid() -> None:
    order, mask = np.full((2, 4), -1), np.zeros((1, 2, 2), bool)
    fill_natural(order)
    fill_natural(mask)
    assert order.tolist() == [[0, 1, 2, 3]] * 2
    assert mask.all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("checkpoint", r"checkpoint is other\.pth \(111111111111…\) here, tiny\.safetensors \(000000000000…\) there"),
        ("prompt", r"prompt is 'another' \(none\) here, 'a prompt' \(none\) there"),
        ("size", "size is 32x32 to 32x32 here, 8x8 to 512x512 there"),
        (
            "decisions",
            r"set of decisions is scpm\.order \[1, 3\] here, scpm\.order \[1, 3\], tcpm1\.keep \[1, 1, 2, 2\] there",
        ),
    ],
)
def test_two_that_do_not_go_together(make: Any, change: str, sentence: str) -> None:
    contract = make.tensor_contract()
    ranker, given = make.manifest(ranking(contract)), make.manifest(taking(contract), ranking="given")
    renamed = dataclasses.replace(given, source=dataclasses.replace(given.source, name="copy.safetensors"))
    check_together(Path("a.onnx"), ranker, Path("b.onnx"), renamed)  # the digest counts
    changes: dict[str, Any] = {
        "checkpoint": {"source": dataclasses.replace(given.source, name="other.pth", sha256="1" * 64)},
        "prompt": {"text": dataclasses.replace(given.text, prompt="another", permutations={"tcpm1": (1, 0)})},
        "size": {"contract": taking(make.tensor_contract(make.one_size(32, 32)))},
        "decisions": {"contract": dataclasses.replace(contract, decision_inputs=(ORDER,))},
    }
    with pytest.raises(ArtifactError, match="b.onnx does not go with a.onnx: the " + sentence) as caught:
        check_together(Path("a.onnx"), ranker, Path("b.onnx"), dataclasses.replace(given, **changes[change]))
    assert "--ranking given" in caught.value.hint
