"""Every kind of thing that ``upfusion data check`` finds, made on purpose."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from upfusion.evaluation.check import Report, check_folder
from upfusion.runtime.errors import InputError


def noise(seed: int, shape: tuple[int, ...] = (16, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of three good pairs with lists."""
    folder = tmp_path / "tno"
    for number, side in enumerate(("vis", "ir")):
        (folder / side).mkdir(parents=True)
        for name in range(3):
            cv2.imwrite(str(folder / side / f"{name}.png"), noise(10 * number + name))
    (folder / "train.txt").write_text("0\n")
    (folder / "test.txt").write_text("1\n2\n")
    return folder


def only(folder: Path) -> Report:
    (report,) = check_folder(folder)
    return report


def problems(folder: Path, severity: str) -> list[str]:
    return [f"{Path(f.where).name}: {f.problem}" for f in only(folder).findings if f.severity == severity]


def test_a_good_set(folder: Path) -> None:
    seen: list[str] = []
    (report,) = check_folder(folder, done=seen.append)
    assert report.good
    assert not report.findings
    assert seen == ["0", "1", "2"]
    assert (report.dataset, report.first, report.second) == ("TNO", "visible", "infrared")
    assert (report.pairs, report.splits, report.sizes) == (3, {"train": 1, "test": 2}, {"16x20": 3})
    assert report.color == {"gray": 3}


def test_a_missing_partner(folder: Path) -> None:
    (folder / "ir" / "1.png").unlink()
    assert "1.png: has no partner named 1 in" in problems(folder, "error")[0]
    assert not only(folder).good


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "vis" / "0.png"
    path.write_bytes(path.read_bytes()[:100])
    assert [line.split(":")[0] for line in problems(folder, "error")] == ["0.png"]


def test_sizes_that_differ(folder: Path) -> None:
    cv2.imwrite(str(folder / "ir" / "2.png"), noise(1, (16, 21)))
    assert "2.png: has 16x21 pixels (height x width), its partner" in problems(folder, "error")[0]


def test_swapped_folders(folder: Path) -> None:
    cv2.imwrite(str(folder / "ir" / "0.png"), noise(1, (16, 20, 3)))
    assert "look swapped" in problems(folder, "error")[0]
    cv2.imwrite(str(folder / "vis" / "0.png"), noise(2, (16, 20, 3)))
    assert not problems(folder, "error")
    assert "only its luma is used" in problems(folder, "warning")[0]


def test_copies(folder: Path) -> None:
    (folder / "ir" / "0.png").write_bytes((folder / "vis" / "0.png").read_bytes())
    (folder / "vis" / "1.png").write_bytes((folder / "vis" / "0.png").read_bytes())
    found = problems(folder, "warning")
    assert any("0.png: shows the same as" in line for line in found)
    assert any("the first images of 0, 1 are the same file" in line for line in found)


def test_a_blank_image_and_16_bits(folder: Path) -> None:
    cv2.imwrite(str(folder / "vis" / "0.png"), np.full((16, 20), 9, np.uint8))
    cv2.imwrite(str(folder / "ir" / "1.png"), noise(3).astype(np.uint16) * 257)
    found = problems(folder, "warning")
    assert "0.png: is a single level, 9, everywhere" in found
    assert any(line.startswith("1.png: has 16 bits") for line in found)
    assert only(folder).good


def test_foreign_files_and_double_names(folder: Path) -> None:
    (folder / "vis" / "readme.md").write_text("hello")
    cv2.imwrite(str(folder / "vis" / "0.jpg"), noise(0))
    assert any(line.startswith("readme.md: is no image") for line in problems(folder, "warning"))
    assert any("has the same name as" in line for line in problems(folder, "error"))


def test_lists_that_do_not_fit(folder: Path) -> None:
    (folder / "train.txt").write_text("0\n1\n1\nghost\n")
    (folder / "test.txt").write_text("1\n")
    errors = problems(folder, "error")
    assert "train.txt: lists 1 names without a pair: ghost" in errors
    assert "tno: 1 pairs are in train.txt and test.txt: 1" in errors
    warnings = problems(folder, "warning")
    assert "train.txt: lists 1 more than once" in warnings
    assert "tno: 1 pairs are in no list: 2" in warnings


def test_a_pair_in_both_split_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, side in enumerate(("vi", "ir")):
            (tmp_path / "MSRS" / split / side).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / "MSRS" / split / side / "1.png"), noise(number))
    report = only(tmp_path / "MSRS")
    assert report.splits == {"train": 1, "test": 1}
    texts = [finding.problem for finding in report.findings]
    assert "1 is in train and in test" in texts
    assert "the first images of train/1, test/1 are the same file" in texts


def test_an_empty_set(tmp_path: Path) -> None:
    for side in ("vis", "ir"):
        (tmp_path / side).mkdir()
    assert [finding.problem for finding in only(tmp_path).findings] == ["holds no pair"]


def test_several_sets_below_a_folder(folder: Path) -> None:
    for side in ("a", "b"):
        (folder.parent / "harvard" / "ct_mri" / side).mkdir(parents=True)
        cv2.imwrite(str(folder.parent / "harvard" / "ct_mri" / side / "5.png"), noise(ord(side)))
    assert [report.dataset for report in check_folder(folder.parent)] == ["Harvard CT-MRI", "TNO"]


def test_no_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folders of image pairs"):
        check_folder(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        check_folder(tmp_path / "missing")


def test_the_reference_sets_are_good(shared: Path) -> None:
    reports = [report for name in ("msrs", "gfp_pc") for report in check_folder(shared / "data" / name)]
    assert [(report.dataset, report.pairs, report.good) for report in reports] == [
        ("MSRS", 15, True),
        ("GFP-PC", 4, True),
    ]
