"""Runs: resumed equals uninterrupted, recipes, what is written, and what the user sees when it cannot go on."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch

from upfusion.checkpoint import load_checkpoint
from upfusion.evaluation.datasets import select_pairs
from upfusion.runtime.errors import CheckpointError, DeviceError, InputError, TrainingError
from upfusion.runtime.pairs import read_pair
from upfusion.text import stand_in_text
from upfusion.train.data import Crops, PairReader
from upfusion.train.distributed import Processes
from upfusion.train.loop import BEST, WEIGHTS, Trainer, TrainOptions
from upfusion.train.recipes import RECIPES, recipe_named
from upfusion.train.schedule import learning_rate
from upfusion.train.state import FILE

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))


def small(name, **changes):
    return dataclasses.replace(RECIPES[name], **{"crop": 48, "batch": 1, **changes})


def trainer(pairs, output, recipe, *, held_out=0, **options):
    output.mkdir(exist_ok=True)
    found = select_pairs(pairs, "train").pairs
    crops = Crops(PairReader(found), recipe, seed=0)
    return Trainer(
        recipe,
        TrainOptions(output=output, preset="micro", **{"steps": 6, "save_minutes": 60, **options}),
        crops,
        stand_in_text(),
        ALONE,
        held_out=[read_pair(pair) for pair in found[:held_out]],
    )


def weights(folder, name=WEIGHTS):
    return load_checkpoint(folder / name).model.state_dict()


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_and_resumed_equals_uninterrupted(micro, pairs, tmp_path, name):
    recipe = small(name)
    trainer(pairs, tmp_path / "whole", recipe).run()
    first = trainer(pairs, tmp_path / "parts", recipe)
    halfway = first.run(lambda done: first.stop() if done.step == 3 else None)
    assert (halfway.steps, halfway.finished) == (3, False)
    resumed = trainer(pairs, tmp_path / "parts", recipe, resume=True).run()
    assert (resumed.steps, resumed.finished) == (6, True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_steady_order_is_made_where_the_ranking_does_not_learn(micro, pairs, tmp_path):
    def squeezes(name, **options):
        network = trainer(pairs, tmp_path / name, small("refine", steady_order=name != "plain"), **options).trained
        return [module.squeeze[0].weight for module in network.perturbations]

    plain, steady, learning = squeezes("plain"), squeezes("steady"), squeezes("own", ranking="straight-through")
    assert all(not torch.equal(one, two) for one, two in zip(plain, steady, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(plain, learning, strict=True))


def test_a_signal_saves_and_stops(micro, pairs, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run = trainer(pairs, tmp_path / "run", small("paper"))
    outcome = run.run(lambda done: os.kill(os.getpid(), signal.SIGTERM) if done.step == 2 else None)
    assert (outcome.steps, outcome.finished) == (2, False)
    assert (tmp_path / "run" / FILE).exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_seed_decides_everything(micro, pairs, tmp_path):
    recipe = small("shipped")
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(pairs, tmp_path / folder, recipe, steps=2, seed=seed).run()
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    differing = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert not torch.equal(*(state["output.weight"] for state in differing))


def test_the_loss_falls_on_one_pair(micro, pairs, tmp_path):
    (pairs / "train.txt").write_text("p0\n")
    recipe = small("shipped", warmup_steps=1, ema=None, flips=False, darken=0.0)
    losses = []
    trainer(pairs, tmp_path / "run", recipe, steps=16).run(lambda done: losses.append(done.loss))
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])


def test_validation_writes_metrics_pictures_and_the_best_weights(micro, pairs, tmp_path):
    run = trainer(pairs, tmp_path / "run", small("paper"), held_out=2, steps=2, validate_steps=1)
    outcome = run.run()
    assert set(outcome.metrics) == {"Q_NCIE", "Q_P", "VIF", "SSIM", "Qabf"}
    pictures = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert pictures == ["0000001_0.png", "0000001_1.png", "0000002_0.png", "0000002_1.png"]
    best = load_checkpoint(tmp_path / "run" / BEST)
    assert best.provenance["validation"].keys() == outcome.metrics.keys()
    assert not best.model.training
    assert run.state.network.training


def test_tensorboard_holds_each_step_once_after_a_resume(micro, pairs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = trainer(pairs, tmp_path / "run", small("paper"))
    first.run(lambda done: first.stop() if done.step == 3 else None)
    trainer(pairs, tmp_path / "run", small("paper"), resume=True).run()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "learning rate", "gradient norm", "term/intensity"} <= set(events.Tags()["scalars"])


def test_weights_say_where_they_come_from(micro, pairs, tmp_path):
    trainer(pairs, tmp_path / "run", small("paper"), steps=1).run()
    loaded = load_checkpoint(tmp_path / "run" / WEIGHTS)
    assert loaded.provenance["steps"] == 1
    assert loaded.provenance["recipe"]["learning_rate"] == 1e-4
    assert loaded.text.encoder.startswith("stand-in")


def test_an_ablated_run_writes_no_weights(micro, pairs, tmp_path):
    trainer(pairs, tmp_path / "run", small("paper"), steps=1, without=("modulation",)).run()
    assert (tmp_path / "run" / FILE).exists()
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_bf16_trains(micro, pairs, tmp_path):
    outcome = trainer(pairs, tmp_path / "run", small("paper"), steps=2, precision="bf16").run()
    assert outcome.finished
    assert weights(tmp_path / "run")["output.weight"].dtype == torch.float32


def test_fp16_needs_a_gpu(micro, pairs, tmp_path):
    with pytest.raises(DeviceError, match="CUDA"):
        trainer(pairs, tmp_path / "run", small("paper"), precision="fp16")


def test_a_folder_with_a_run_is_not_overwritten(micro, pairs, tmp_path):
    trainer(pairs, tmp_path / "run", small("paper"), steps=1).run()
    with pytest.raises(InputError, match="already holds a run"):
        trainer(pairs, tmp_path / "run", small("paper"), steps=1)
    with pytest.raises(InputError, match="no run to resume"):
        trainer(pairs, tmp_path / "empty", small("paper"), resume=True)


def test_resuming_with_other_settings_names_them(micro, pairs, tmp_path):
    trainer(pairs, tmp_path / "run", small("paper"), steps=1).run()
    with pytest.raises(CheckpointError, match=r"seed: 0 then, 5 now"):
        trainer(pairs, tmp_path / "run", small("paper"), steps=1, resume=True, seed=5)


def test_a_damaged_state_is_refused(micro, pairs, tmp_path):
    trainer(pairs, tmp_path / "run", small("paper"), steps=1).run()
    state = tmp_path / "run" / FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        trainer(pairs, tmp_path / "run", small("paper"), steps=1, resume=True)


def test_a_gradient_that_is_not_finite_ends_the_run(micro, pairs, tmp_path):
    run = trainer(pairs, tmp_path / "run", small("paper"))
    with torch.no_grad():
        run.state.network.output.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="step 1"):
        run.run()


def test_unknown_names_list_the_known():
    with pytest.raises(InputError) as caught:
        recipe_named("mine")
    assert "paper, authors-code, shipped" in caught.value.hint
    with pytest.raises(InputError, match="multiple of 8"):
        small("paper", crop=100)


def test_learning_rates_are_those_of_the_recipes():
    paper, code = RECIPES["paper"], RECIPES["authors-code"]
    assert learning_rate(paper, 0, 10, 1000) == pytest.approx(1e-4)
    assert learning_rate(paper, 500, 10, 1000) == pytest.approx(5.5e-5)
    assert learning_rate(paper, 999, 10, 1000) == pytest.approx(1e-5, rel=1e-3)
    # x 0.8 after every epoch; the floor of 1e-6 is reached in epoch 12, counted from 1.
    assert learning_rate(code, 9, 10, 2000) == pytest.approx(1e-5)
    assert learning_rate(code, 10, 10, 2000) == pytest.approx(8e-6)
    assert learning_rate(code, 100, 10, 2000) == pytest.approx(1e-5 * 0.8**10)
    assert learning_rate(code, 110, 10, 2000) == 1e-6
