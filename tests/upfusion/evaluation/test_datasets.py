"""Datasets as data: the layouts of the public downloads and of the reference folder, splits, parts."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from upfusion.evaluation.datasets import DATASETS, dataset_of, select_pairs
from upfusion.evaluation.paper import PAPER_VALUES
from upfusion.metrics import PAPER_METRICS
from upfusion.runtime.errors import InputError


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.zeros((8, 8), np.uint8))


def found(folder: Path, split: str = "test") -> list[str]:
    return [pair.name for pair in select_pairs(folder, split).pairs]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("MSRS", "test/vi", "test/ir"),
        ("LLVIP", "visible/test", "infrared/test"),
        ("M3FD_Fusion", "Vis", "Ir"),
        ("RoadScene-master", "crop_LR_visible", "cropinfrared"),
        ("TNO", "vi", "ir"),
        ("CT-MRI", "CT", "MRI"),
        ("PET-MRI", "test/PET", "test/MRI"),
        ("MRI_SPECT", "SPECT", "MRI"),
        ("GFP", "GFP", "PC"),
        ("msrs", "vis", "ir"),
        ("gfp_pc", "a", "b"),
        ("my own pictures", "visible", "infrared"),
    ],
)
def test_layouts_as_they_are_downloaded(tmp_path: Path, name: str, first: str, second: str) -> None:
    folder = tmp_path / name
    write(folder / first, "2.png", "10.jpg")
    write(folder / second, "10.png", "2.png")
    selection = select_pairs(folder)
    assert [pair.name for pair in selection.pairs] == ["10", "2"]
    assert selection.pairs[1].first == folder / first / "2.png"
    assert selection.pairs[1].second == folder / second / "2.png"


def test_a_list_chooses_the_split_and_its_order(tmp_path: Path) -> None:
    folder = tmp_path / "tno"
    for side in ("vis", "ir"):
        write(folder / side, "a.png", "b.png", "c.png", "d.png")
    assert found(folder) == ["a", "b", "c", "d"]  # no lists: the whole set
    (folder / "test.txt").write_text("c\na\n\n")
    assert found(folder) == ["c", "a"]
    assert found(folder, "all") == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="lists no train pairs"):
        found(folder, "train")
    (folder / "train.txt").write_text("b\nz\n")
    with pytest.raises(InputError, match=r"train\.txt lists 1 pairs that are not there: z"):
        found(folder, "train")


def test_folders_choose_the_split(tmp_path: Path) -> None:
    folder = tmp_path / "MSRS"
    for split, names in (("train", ["1.png"]), ("test", ["2.png"])):
        for side in ("vi", "ir"):
            write(folder / split / side, *names)
    assert (found(folder, "train"), found(folder, "test")) == (["1"], ["2"])
    assert found(folder, "all") == ["1", "2"]
    assert found(folder / "test") == ["2"]  # the split's own folder
    assert select_pairs(folder / "test").name == "MSRS"


def test_harvard_is_its_three_parts(tmp_path: Path) -> None:
    folder = tmp_path / "harvard"
    for part in ("ct_mri", "spect_mri"):
        for side in ("a", "b"):
            write(folder / part / side, "7.png")
    selection = select_pairs(folder)
    assert selection.name == "Harvard"
    assert [pair.name for pair in selection.pairs] == ["ct_mri/7", "spect_mri/7"]
    assert select_pairs(folder / "ct_mri").name == "Harvard CT-MRI"


def test_what_is_no_dataset_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        select_pairs(tmp_path / "missing")
    (tmp_path / "holidays").mkdir()
    with pytest.raises(InputError, match="no folders of image pairs"):
        select_pairs(tmp_path / "holidays")
    (tmp_path / "harvard").mkdir()
    with pytest.raises(InputError, match="none of the folders ct_mri, pet_mri, spect_mri"):
        select_pairs(tmp_path / "harvard")


def test_the_paper_s_rows_name_known_datasets_and_metrics() -> None:
    assert set(PAPER_VALUES) <= set(DATASETS)
    assert all(tuple(values) == PAPER_METRICS for _, values in PAPER_VALUES.values())


def test_parts_are_datasets() -> None:
    assert all(part in DATASETS for dataset in DATASETS.values() for part in dataset.parts)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_reference_folder_has_the_pairs_of_its_index(shared: Path, split: str) -> None:
    with (shared / "data" / "index.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == split]
    for name in sorted({row["dataset"] for row in rows}):
        expected = {row["name"]: (row["first"], row["second"]) for row in rows if row["dataset"] == name}
        folder = shared / "data" / name
        pairs = select_pairs(folder, split).pairs  # type: ignore[arg-type]
        places = {
            pair.name: tuple(str(path.relative_to(shared / "data")) for path in (pair.first, pair.second))
            for pair in pairs
        }
        assert places == expected
        assert dataset_of(folder) is not None


def test_the_paper_s_numbers_are_those_of_the_reference(golden: Path) -> None:
    import json

    printed = json.loads((golden / "metrics" / "paper_tables.json").read_text())
    rows = printed["table1"] | printed["table2"]
    assert {name: list(values.values()) for name, (_, values) in PAPER_VALUES.items()} == rows
    assert printed["order"] == list(PAPER_METRICS)
