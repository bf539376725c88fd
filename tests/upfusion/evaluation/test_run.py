"""Running methods over a dataset: values, processes, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from upfusion.evaluation.baselines import average, maximum, on_luma
from upfusion.evaluation.datasets import Selection, select_pairs
from upfusion.evaluation.run import Method, evaluate_selection
from upfusion.evaluation.table import MethodInfo
from upfusion.metrics import evaluate
from upfusion.runtime.errors import InputError

NAMES = ("SSIM", "EN", "Qabf")


@pytest.fixture
def selection(tmp_path: Path) -> Selection:
    random = np.random.default_rng(0)
    folder = tmp_path / "set"
    for side, shape in (("vis", (24, 30, 3)), ("ir", (24, 30))):
        (folder / side).mkdir(parents=True)
        for name in "abc":
            cv2.imwrite(str(folder / side / f"{name}.png"), random.integers(0, 256, shape, dtype=np.uint8))
    return select_pairs(folder)


class Counted:
    """A method that remembers which calls it got."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        self.calls.append(first.shape)
        return self.method(first, second)


def infos(*names: str) -> dict[str, MethodInfo]:
    return {name: MethodInfo(kind="baseline", identity=f"{name} v1") for name in names}


def test_values_are_those_of_the_metrics(selection: Selection) -> None:
    seen: list[str] = []
    methods = {"average": on_luma(average), "maximum": on_luma(maximum)}
    table = evaluate_selection(selection, methods, infos(*methods), NAMES, workers=1, done=seen.append)
    assert seen == ["a", "b", "c"] == table.pairs
    pair = selection.pairs[1]
    color = cv2.imread(str(pair.first))[..., ::-1].astype(float)
    first = np.rint(color @ [0.299, 0.587, 0.114]).astype(np.uint8)
    second = cv2.imread(str(pair.second), cv2.IMREAD_GRAYSCALE)
    # The luma of random levels may be a tie that float32 and float64 round apart: a grey level in a few pixels.
    expected = evaluate(first, second, maximum(first, second), NAMES)
    assert table.values["maximum"]["b"] == pytest.approx(expected, rel=1e-2)
    assert list(table.values["maximum"]["b"]) == list(NAMES)


def test_processes_change_nothing(selection: Selection) -> None:
    methods = {"average": on_luma(average)}
    alone, pool = (
        evaluate_selection(selection, methods, infos(*methods), NAMES, workers=workers) for workers in (1, 2)
    )
    assert alone.values == pool.values


def test_goes_on_where_it_stopped(selection: Selection, tmp_path: Path) -> None:
    journal = tmp_path / "measured.jsonl"
    method = Counted(on_luma(average))

    def stop_after_two(pair: str) -> None:
        if pair == "b":
            raise KeyboardInterrupt

    def run(done: Callable[[str], object] = lambda pair: None, names: tuple[str, ...] = NAMES):
        return evaluate_selection(selection, {"m": method}, infos("m"), names, journal=journal, workers=1, done=done)

    with pytest.raises(KeyboardInterrupt):
        run(stop_after_two)
    assert len(method.calls) == 2
    text = journal.read_text()
    journal.write_text(text + '{"tool": "0.1.0", "method": "m v1", "pa')  # killed while writing a line
    whole = run()
    assert len(method.calls) == 3
    assert run().values == whole.values
    assert len(method.calls) == 3
    run(names=("SSIM",))  # fewer metrics: all known
    assert len(method.calls) == 3
    run(names=(*NAMES, "SD"))
    assert len(method.calls) == 6


def test_another_artifact_or_image_is_measured_again(selection: Selection, tmp_path: Path) -> None:
    journal = tmp_path / "measured.jsonl"
    method = Counted(on_luma(average))

    def run(identity: str) -> None:
        info = {"m": MethodInfo(kind="artifact", identity=identity)}
        evaluate_selection(selection, {"m": method}, info, NAMES, journal=journal, workers=1)

    run("sha256:1")
    run("sha256:2")
    assert len(method.calls) == 6
    cv2.imwrite(str(selection.pairs[0].second), np.zeros((24, 30), np.uint8))
    run("sha256:2")
    assert len(method.calls) == 7


def test_values_of_another_version_do_not_count(selection: Selection, tmp_path: Path) -> None:
    journal = tmp_path / "measured.jsonl"
    method = Counted(on_luma(average))
    for _ in range(2):
        evaluate_selection(selection, {"m": method}, infos("m"), NAMES, journal=journal, workers=1)
        lines = [json.loads(line) | {"tool": "0.0.0"} for line in journal.read_text().splitlines()]
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(method.calls) == 6


def test_a_method_that_changes_the_size_is_named(selection: Selection) -> None:
    methods: dict[str, Method] = {"cropped": lambda first, second: second[1:]}
    with pytest.raises(InputError, match="cropped: the fused image is 23x30, the sources are 24x30"):
        evaluate_selection(selection, methods, infos("cropped"), NAMES, workers=1)


def test_an_unknown_metric_is_refused_before_anything_is_fused(selection: Selection) -> None:
    method = Counted(on_luma(average))
    with pytest.raises(InputError, match="no metric 'LPIPS'"):
        evaluate_selection(selection, {"m": method}, infos("m"), ["LPIPS"], workers=1)
    assert not method.calls
