"""The fraction over nested, parallel and cut-off phases."""

from __future__ import annotations

from upfusion.export.builder.progress import PhaseTree


def test_an_inner_phase_moves_within_its_parents_step() -> None:
    tree = PhaseTree()
    tree.start("build", None, 4)
    tree.step("build", 0)
    assert tree.fraction() == 1 / 4
    tree.start("time", "build", 2)
    assert tree.fraction() == 1 / 4
    tree.step("time", 0)
    assert tree.fraction() == (1 + 1 / 2) / 4
    tree.finish("time")
    tree.step("build", 1)
    assert tree.fraction() == 2 / 4


def test_parallel_phases_count_by_their_mean() -> None:
    tree = PhaseTree()
    tree.start("build", None, 1)
    tree.start("one", "build", 2)
    tree.start("other", "build", 2)
    tree.step("one", 0)
    assert tree.fraction() == 1 / 4


def test_the_fraction_never_falls() -> None:
    tree = PhaseTree()
    tree.start("build", None, 2)
    tree.start("one", "build", 2)
    tree.step("one", 1)
    before = tree.fraction()
    tree.start("other", "build", 100)
    assert tree.fraction() == before


def test_the_end_is_one_even_when_steps_were_left_out() -> None:
    tree = PhaseTree()
    tree.start("build", None, 6)
    tree.step("build", 2)
    tree.finish("build")
    assert tree.fraction() == 1.0


def test_a_phase_that_was_never_started_is_ignored() -> None:
    tree = PhaseTree()
    tree.step("ghost", 0)
    tree.finish("ghost")
    assert tree.fraction() == 0.0
