"""Calibration of a small network on small images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from upfusion.calibration.calibrate import calibrate
from upfusion.calibration.observers import OrderObserver
from upfusion.calibration.table import decision_table, range_table, sum_table
from upfusion.calibration.windows import typical_window
from upfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upfusion.config import ModelConfig
from upfusion.model import FusionNetwork
from upfusion.model.layers import ChannelAttention
from upfusion.model.margins import mask_margins, order_margins
from upfusion.runtime.calibration_file import SAMPLE_SIZE, Calibration, read_calibration
from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.images import prepare, write_image
from upfusion.runtime.pairs import Pair, find_pairs, read_pair
from upfusion.text import stand_in_text

SMALL = ModelConfig(
    dim=16,
    num_blocks=(1, 1, 1, 1),
    num_refinement_blocks=1,
    ffn_expansion=2.0,
    text_hidden=32,
    convnext_depths=(1, 1, 1, 1),
    convnext_dims=(8, 16, 24, 32),
)
TARGET = (480, 640)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(FusionNetwork(SMALL), path, text=stand_in_text(), provenance={"weights": "random"})
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate([(48, 64), (37, 50), (120, 160)]):
        rows, columns = np.mgrid[0:height, 0:width]
        for name, channels in (("vis", 3), ("ir", 1)):
            waves = generator.uniform(0.05, 0.4, (channels, 2))
            planes = [127 + 120 * np.sin(a * rows + b * columns) for a, b in waves]
            image = np.stack(planes, -1).astype(np.uint8)
            (folder / name).mkdir(exist_ok=True)
            write_image(folder / name / f"{index}.png", image if channels == 3 else image[..., 0])
    return find_pairs(folder / "vis", folder / "ir")


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint, pairs: list[Pair]) -> Calibration:
    seen: list[str] = []
    result = calibrate(checkpoint, None, pairs, TARGET, done=lambda pair: seen.append(pair.name))
    assert seen == ["0", "1", "2"]
    return result


def test_ranges_and_sums_are_those_of_the_network(calibration: Calibration, checkpoint: Checkpoint, pairs: list[Pair]):
    network = checkpoint.model
    streams, sums = [], []
    attention = network.encoders_visible[0][0].attention
    assert isinstance(attention, ChannelAttention)
    handles = [
        network.encoders_visible[0][0].register_forward_hook(lambda m, a, out: streams.append(float(out.abs().max()))),
        attention.depthwise.register_forward_hook(
            lambda m, a, out: sums.append((float(out[:, :16].square().sum((2, 3)).max()), out.shape[2] * out.shape[3]))
        ),
    ]
    text = torch.from_numpy(stand_in_text().features)
    for pair in pairs:
        network(*map(torch.from_numpy, prepare(*read_pair(pair))), text)
    for handle in handles:
        handle.remove()
    assert calibration.ranges["encoders_visible.0.0"].largest == pytest.approx(max(streams), rel=1e-5)
    found = calibration.sums["encoders_visible.0.0.attention.query"]
    assert found.largest == pytest.approx(max(total for total, _ in sums), rel=1e-5)
    wanted = max(total * TARGET[0] * TARGET[1] / pixels for total, pixels in sums)
    assert found.at_target == pytest.approx(wanted, rel=1e-5)
    # Level 4 has 1/64 of the pixels, and so at the target.


def test_percentiles_lie_below_the_largest(calibration: Calibration):
    assert all(0 < site.p9999 <= site.largest for site in calibration.ranges.values())
    assert "encoders_infrared.3.0.feed_forward.project.input" in calibration.ranges
    assert not any(name.startswith("pruning.trunk") for name in calibration.ranges)


def test_decisions_have_margins_agreement_and_a_majority(calibration: Calibration):
    names = {"scpm.order", *(f"tcpm{k}.{what}" for k in range(1, 5) for what in ("order", "keep", "permutation"))}
    assert set(calibration.decisions) == names
    for name, record in calibration.decisions.items():
        assert 0 <= record.smallest_margin <= record.p1_margin
        assert all(0 <= share <= 1 for share in record.agreement)
        assert len(set(record.majority)) == len(record.majority), name
    assert len(calibration.decisions["scpm.order"].majority) == 11
    assert len(calibration.decisions["tcpm4.order"].majority) == 128
    # 14 of 16 logits stay in each of the 16 * heads rows.
    assert len(calibration.decisions["tcpm1.keep"].majority) == 2 * 16


def test_the_majority_order_names_no_channel_twice():
    observer = OrderObserver()
    values = torch.arange(4.0)[None]
    # Channel 3 is the most frequent at both places, but can stand at one only.
    for order in ([3, 1], [3, 2], [1, 3], [0, 3]):
        observer.see(values, torch.tensor([order]))
    record = observer.record()
    assert record.majority in ((3, 1), (3, 2), (1, 3), (0, 3))
    assert sum(record.agreement) == pytest.approx(0.75)


def test_margins():
    values = torch.tensor([[5.0, 1.0, 4.0, 2.5]])
    assert order_margins(values, 2).tolist() == [[1.0, 1.5]]
    assert order_margins(values, 4).tolist() == [[1.0, 1.5, 1.5]]
    logits = torch.tensor([[[[3.0, 1.0, 2.0]]]])
    assert mask_margins(logits, torch.tensor([[[[True, False, True]]]])).tolist() == [[[1.0]]]


def test_samples_are_crops_of_the_pairs(calibration: Calibration, pairs: list[Pair]):
    assert [sample.name for sample in calibration.samples] == ["0", "1", "2"]
    visible, infrared = calibration.samples[2].images()
    assert visible.shape == (*SAMPLE_SIZE, 3)
    whole = read_pair(pairs[2])
    window = typical_window(whole, SAMPLE_SIZE)
    assert np.array_equal(visible, whole[0][window])
    assert np.array_equal(infrared, whole[1][window])


def test_the_file_round_trips(calibration: Calibration, tmp_path: Path):
    path = tmp_path / "calibration.json"
    calibration.write(path)
    again = read_calibration(path)
    again.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert again.decisions == calibration.decisions
    assert calibration.record(path)["pairs"] == ["0", "1", "2"]


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', '{"schema": 99}'])
def test_a_damaged_file_is_refused(content: str, tmp_path: Path):
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"calibration\.json is not a calibration"):
        read_calibration(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match="no such calibration"):
        read_calibration(tmp_path / "none.json")


def test_no_pairs_and_no_text_are_refused(checkpoint: Checkpoint, pairs: list[Pair]):
    with pytest.raises(InputError, match="no pairs"):
        calibrate(checkpoint, None, [])
    with pytest.raises(InputError, match="no text feature"):
        calibrate(dataclasses.replace(checkpoint, text=None), None, pairs)


def test_tables_name_what_is_near_the_limit(calibration: Calibration):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in (range_table(calibration), sum_table(calibration), decision_table(calibration)):
        console.print(table)
    shown = console.export_text()
    assert "encoders_visible.0" in shown
    assert "attention mask" in shown
    assert "480x640" in shown
