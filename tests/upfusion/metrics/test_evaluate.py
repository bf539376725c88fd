"""The package's front: names, input checks, what is kept, what is imported."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest

from upfusion.metrics import METRICS, PAPER_METRICS, Sources, evaluate, evaluate_sources
from upfusion.metrics.registry import ALIASES
from upfusion.runtime.errors import InputError


def image(seed: int, shape: tuple[int, int] = (24, 31)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_answers_under_the_names_asked_for_and_in_their_order() -> None:
    names = ["Qabf", "Q_MI", "EN"]
    assert list(evaluate(image(1), image(2), image(3), names)) == names
    assert list(evaluate(image(1), image(2), image(3))) == list(METRICS)
    assert set(PAPER_METRICS) < set(METRICS)
    assert set(ALIASES.values()) <= set(METRICS)


def test_an_alias_is_the_same_quantity() -> None:
    value = evaluate(image(1), image(2), image(3), ["Q_MI", "NMI"])
    assert value["Q_MI"] == value["NMI"]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_it_is(name: str) -> None:
    metric = METRICS[name]
    assert metric.lowest < metric.highest
    assert name in (inspect.getdoc(metric.function) or "").replace("Q^{AB/F}", "Qabf")
    assert "Range" in (metric.function.__doc__ or "")
    assert metric.better == ("lower" if name == "MSE" else "higher")


@pytest.mark.parametrize("name", PAPER_METRICS)
def test_symmetric_in_the_sources(name: str) -> None:
    first, second, fused = image(1), image(2), image(3)
    # Sums in another order; Q_P picks by pc_A > pc_B, and equal values do not occur in noise.
    swapped = evaluate(second, first, fused, [name])[name]
    assert evaluate(first, second, fused, [name])[name] == pytest.approx(swapped, rel=1e-9, abs=1e-12)


def test_sources_compute_once() -> None:
    calls = []

    def count(of: np.ndarray) -> int:
        calls.append(of)
        return len(calls)

    pair = Sources(image(1), image(2))
    assert pair.each(count) == (1, 2)
    assert pair.each(count) == (1, 2)
    pair.forget()
    assert pair.each(count) == (3, 4)


@pytest.mark.parametrize(
    "bad", [image(1).astype(float), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 3), np.uint8), [[1, 2]]]
)
def test_other_types_and_shapes_are_refused(bad: object) -> None:
    with pytest.raises(InputError, match="uint8"):
        Sources(bad, image(1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the fused image is"):
        evaluate_sources(Sources(image(1), image(2)), bad)  # type: ignore[arg-type]


def test_sizes_must_agree() -> None:
    with pytest.raises(InputError, match="24x31 and 24x30"):
        Sources(image(1), image(1, (24, 30)))
    with pytest.raises(InputError, match="fused image is 20x31"):
        evaluate(image(1), image(2), image(3, (20, 31)))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="no metric 'QABF'") as raised:
        evaluate(image(1), image(2), image(3), ["QABF"])
    assert "Qabf" in raised.value.hint


def test_needs_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, upfusion.metrics; sys.exit(bool({'torch', 'scipy', 'skimage', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
