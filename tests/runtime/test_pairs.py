"""Pairs come from file stems; whatever does not pair is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from upfusion.runtime.errors import InputError
from upfusion.runtime.images import write_image
from upfusion.runtime.pairs import Pair, find_pairs, read_pair


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "visible", tmp_path / "infrared"
    for folder in (first, second):
        folder.mkdir()
    return first, second


def put(*paths: Path, size: tuple[int, ...] = (9, 11)) -> None:
    for path in paths:
        write_image(path, np.zeros(size, np.uint8))


def test_by_stem_not_by_order(folders: tuple[Path, Path]) -> None:
    first, second = folders
    put(first / "b.jpg", first / "a.png", first / "10.bmp", second / "10.png", second / "a.TIF", second / "b.png")
    (first / ".DS_Store").write_text("")
    (second / "Thumbs.db").write_text("")
    pairs = find_pairs(first, second)
    assert [(pair.name, pair.first.name, pair.second.name) for pair in pairs] == [
        ("10", "10.bmp", "10.png"),
        ("a", "a.png", "a.TIF"),
        ("b", "b.jpg", "b.png"),
    ]


def test_two_files_need_not_share_a_name(folders: tuple[Path, Path]) -> None:
    first, second = folders[0] / "x.png", folders[1] / "y.png"
    put(first, second)
    assert find_pairs(str(first), second) == [Pair(name="x", first=first, second=second)]


def test_missing_partners_are_named(folders: tuple[Path, Path]) -> None:
    first, second = folders
    put(first / "a.png", first / "b.png", second / "a.png", second / "c.png")
    with pytest.raises(InputError, match=r"2 of 4 images have no partner .*infrared/c\.png, .*visible/b\.png"):
        find_pairs(first, second)


def test_many_missing_partners_are_counted(folders: tuple[Path, Path]) -> None:
    first, second = folders
    put(*(first / f"{i}.png" for i in range(8)), second / "0.png")
    with pytest.raises(InputError, match=r"7 of 9 .* and 2 more"):
        find_pairs(first, second)


def test_duplicate_stems(folders: tuple[Path, Path]) -> None:
    put(folders[0] / "a.png", folders[0] / "a.jpg", folders[1] / "a.png")
    with pytest.raises(InputError, match=r"two images named a: a\.jpg and a\.png") as caught:
        find_pairs(*folders)
    assert "keep one" in caught.value.hint


def test_files_that_are_no_images(folders: tuple[Path, Path]) -> None:
    put(folders[0] / "a.png", folders[1] / "a.png")
    (folders[1] / "notes.txt").write_text("")
    (folders[1] / "more").mkdir()
    with pytest.raises(InputError, match=r"infrared holds what is not an image: more, notes\.txt"):
        find_pairs(*folders)


def test_paths_that_do_not_fit(folders: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = folders
    with pytest.raises(InputError, match="holds no images"):
        find_pairs(first, second)
    put(first / "a.png")
    with pytest.raises(InputError, match=r"is a file and .* is a folder"):
        find_pairs(first / "a.png", second)
    with pytest.raises(InputError, match="none: no such file or folder"):
        find_pairs(first, tmp_path / "none")


def test_read_pair(folders: tuple[Path, Path]) -> None:
    first, second = folders[0] / "x.png", folders[1] / "y.png"
    put(first, second, size=(9, 11, 3))
    visible, infrared = read_pair(find_pairs(first, second)[0])
    assert visible.shape == (9, 11, 3)
    assert infrared.shape == (9, 11)


def test_sizes_of_a_pair_must_agree(folders: tuple[Path, Path]) -> None:
    first, second = folders[0] / "x.png", folders[1] / "x.png"
    put(first)
    put(second, size=(9, 12))
    with pytest.raises(InputError, match=r"visible/x\.png has 9x11 .*infrared/x\.png has 9x12") as caught:
        read_pair(find_pairs(*folders)[0])
    assert "-resize 11x9!" in caught.value.hint


def test_a_real_folder(shared: Path) -> None:
    pairs = find_pairs(shared / "data/roadscene/vis", shared / "data/roadscene/ir")
    assert len(pairs) == 181
    visible, infrared = read_pair(pairs[0])
    assert visible.shape[:2] == infrared.shape
