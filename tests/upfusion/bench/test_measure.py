"""What is timed is what was asked for: rounds, order, batches, threads, and the closing of everything."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

from upfusion.bench.contender import Contender, scaled
from upfusion.bench.measure import interleaved_ms, loads_of, parts_of, throughputs
from upfusion.bench.run import BenchOptions, bench, rounds_of
from upfusion.bench.summary import summary_of
from upfusion.runtime.errors import InputError

IMAGES = [(np.full((24, 32, 3), 50, np.uint8), np.full((24, 32), 60, np.uint8))]
QUICK = BenchOptions(runs=6, warm_up=1, parts_runs=2, seconds=0.0, windows=2)


def test_statistics() -> None:
    summary = summary_of([float(value) for value in range(1, 102)])
    assert (summary.count, summary.minimum, summary.mean, summary.maximum) == (101, 1, 51, 101)
    assert (summary.median, summary.p90, summary.p99) == (51, 91, 100)
    alone = summary_of([7.0])
    assert {alone.minimum, alone.mean, alone.median, alone.p90, alone.p99, alone.maximum} == {7.0}


def test_rounds_are_interleaved_and_everybody_begins_once() -> None:
    order: list[str] = []
    rounds = 0

    def subject(name: str) -> Any:
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    def done() -> None:
        nonlocal rounds
        rounds += 1

    times = interleaved_ms({name: subject(name) for name in "abc"}, runs=3, warm_up=1, done=done)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert times == {"a": [6.0, 8.0, 10.0], "b": [4.0, 9.0, 11.0], "c": [5.0, 7.0, 12.0]}
    assert rounds == 4


def test_the_bare_run_and_what_is_ours(artifact: Any) -> None:
    steps: list[str] = []
    result = bench([artifact("a", 0.010), artifact("b", 0.004)], None, QUICK, step=steps.append)
    slow, fast = result.artifacts
    for one, seconds in ((slow, 0.010), (fast, 0.004)):
        assert one.latency.count == len(one.times_ms) == 6
        assert one.latency.minimum >= seconds * 1e3
        assert one.bare is not None
        assert one.bare.minimum >= seconds * 500
        assert one.overhead_ms is not None
        # Half of a call is outside the session, and sleeping only ever takes longer than asked.
        assert one.overhead_ms > seconds * 250
        assert one.size == (24, 32)
        assert set(one.parts_ms) == {"prepare", "run", "finish"}
        assert "roofline: not on a GPU" in one.not_measured
    assert slow.latency.median > fast.latency.median
    assert result.gpu is None
    assert result.gpu_note
    assert len(steps) == rounds_of(2, QUICK)


def test_parts_of_a_backend_that_knows_them(artifact: Any) -> None:
    with Contender(artifact("a", timed=True), IMAGES) as contender:
        parts = parts_of([contender], 3)["a"]
    assert (parts["copy_in"], parts["compute"], parts["copy_out"]) == (1.0, 8.0, 2.0)
    assert set(parts) == {"prepare", "copy_in", "compute", "copy_out", "finish"}


def test_a_graph_takes_the_batch_that_it_was_exported_for(artifact: Any) -> None:
    with Contender(artifact("fixed", batch=2), IMAGES) as fixed, Contender(artifact("open", batch="n"), IMAGES) as any_:
        taken, left_out = loads_of(fixed, (1, 2), (1, 3))
        assert [(load.batch, load.contexts) for load in taken] == [(2, 1), (2, 3)]
        assert left_out == ["batch 1: fixed was exported for batch 2"]
        assert [(load.batch, load.contexts) for load in loads_of(any_, (1, 4), (1,))[0]] == [(1, 1), (4, 1)]
        assert [load.batch for load in loads_of(fixed, None, (1,))[0]] == [2]


def test_throughput_grows_with_batch_and_contexts(artifact: Any) -> None:
    """The backend sleeps as long for four pairs as for one, and two sleep side by side."""
    with Contender(artifact("a", 0.01, batch="n"), IMAGES, contexts=2, max_batch=4) as contender:
        loads, _ = loads_of(contender, (1, 4), (1, 2))
        rates = {(one.batch, one.contexts): one.pairs_per_second for one in throughputs(loads, seconds=0.1, windows=3)}
    assert 40 < rates[1, 1] <= 100
    # Twice and four times but for what the machine's other work takes.
    assert rates[4, 1] > 2.5 * rates[1, 1]
    assert rates[1, 2] > 1.3 * rates[1, 1]


def test_energy_is_counted_per_pair(artifact: Any) -> None:
    class Meter:
        """Ten joules between any two looks."""

        total = 0.0

        def joules(self) -> float:
            self.total += 10
            return self.total

    with Contender(artifact("a", 0.001, batch=2), IMAGES) as contender:
        loads, _ = loads_of(contender, None, (1,))
        (one,) = throughputs(loads, seconds=0.0, windows=2, meter=Meter())  # type: ignore[arg-type]
    assert one.joules_per_pair == 10 / (2 * 2)  # two calls of two pairs in each window


def test_contexts_need_a_backend_that_can(artifact: Any) -> None:
    class Alone:
        device = "cpu"

        def run(self, inputs: Any) -> Any:
            return {}

        def close(self) -> None:
            pass

    with pytest.raises(InputError, match="one context only"):
        Contender(artifact("a", backend=Alone()), IMAGES, contexts=2)


def test_images(artifact: Any) -> None:
    pair = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
    assert [image.shape for image in scaled(pair, (24, 32))] == [(24, 32, 3), (24, 32)]
    assert scaled(pair, (48, 64))[0] is pair[0]
    assert bench([artifact("a")], [pair], QUICK, size=(32, 32)).artifacts[0].size == (32, 32)
    assert bench([artifact("a")], [pair], QUICK).artifacts[0].size == (48, 64)
    with pytest.raises(InputError, match="2 sizes"):
        bench([artifact("a")], [pair, IMAGES[0]], QUICK)


def test_everything_is_closed_once_whatever_happens(artifact: Any) -> None:
    good = [artifact("a"), artifact("b")]
    bench(good, None, QUICK)
    same = [artifact("a"), artifact("a")]
    with pytest.raises(InputError, match="same name"):
        bench(same, None, QUICK)
    large = [artifact("a"), artifact("b")]
    with pytest.raises(InputError, match="takes"):
        bench(large, None, QUICK, size=(200, 200))
    assert [one.backend.closed for one in (*good, *same, *large)] == [1] * 6
    assert threading.active_count() < 20


@pytest.mark.parametrize("change", [{"runs": 0}, {"contexts": ()}, {"batches": (0,)}, {"seconds": -1.0}])
def test_options_that_measure_nothing(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="nothing can be measured"):
        dataclasses.replace(QUICK, **change)
