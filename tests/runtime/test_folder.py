"""Folders of pairs: names of outputs, failures in the middle, a full disk, provenance in the files."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upfusion.runtime.errors import InputError
from upfusion.runtime.folder import fuse_files, output_paths, summary
from upfusion.runtime.fuser import load
from upfusion.runtime.images import read_image, write_image
from upfusion.runtime.pairs import Pair, find_pairs


@pytest.fixture
def pairs(tmp_path: Path, noise: Any) -> list[Pair]:
    for folder, channels in (("a", (3,)), ("b", ())):
        (tmp_path / folder).mkdir()
        for number in range(9):
            write_image(tmp_path / folder / f"{number}.png", noise((17, 24, *channels), seed=number))
    return find_pairs(tmp_path / "a", tmp_path / "b")


@pytest.fixture
def fuser(tmp_path: Path, make: Any) -> Any:
    with load(make.onnx(tmp_path / "tiny.onnx", make.tensor_contract()), options=make.options) as loaded:
        yield loaded


def test_every_pair_is_written(tmp_path: Path, fuser: Any, pairs: list[Pair]) -> None:
    named: list[str] = []
    paths = output_paths(pairs, tmp_path / "new" / "out")
    result = fuse_files(fuser, pairs, paths, done=named.append)
    assert sorted(result.written) == [str(number) for number in range(9)]
    assert named == [pair.name for pair in pairs]
    assert not result.failed
    for pair in pairs:
        fused = fuser(read_image(pair.first), read_image(pair.second))
        assert np.array_equal(read_image(paths[pair.name]), fused)
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [f"{n}.png" for n in range(9)]


def test_a_failing_pair_does_not_end_the_folder(tmp_path: Path, fuser: Any, pairs: list[Pair], noise: Any) -> None:
    pairs[3].second.write_bytes(pairs[3].second.read_bytes()[:90])
    write_image(pairs[5].second, noise((17, 25)))
    result = fuse_files(fuser, pairs, output_paths(pairs, tmp_path / "out"))
    assert sorted(result.failed) == ["3", "5"]
    assert "3.png" in result.failed["3"].problem
    assert "17x25" in result.failed["5"].problem
    assert len(result.written) == 7
    record = summary(result)
    assert record["failed"]["5"]["hint"].count("magick") == 1
    assert json.loads(json.dumps(record)) == record


def test_a_full_disk_ends_it(tmp_path: Path, fuser: Any, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = Path.write_bytes, [0]

    def full(self: Path, data: bytes) -> int:
        count[0] += 1
        if count[0] > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
        fuse_files(fuser, pairs, output_paths(pairs, tmp_path / "out"))
    left = sorted((tmp_path / "out").iterdir())
    assert len(left) == 3  # whole images, no temporaries
    for path in left:
        assert read_image(path).shape == (17, 24, 3)


def test_where_outputs_go(tmp_path: Path, pairs: list[Pair]) -> None:
    one = pairs[:1]
    assert output_paths(one, tmp_path / "fused.jpg") == {"0": tmp_path / "fused.jpg"}
    assert output_paths(one, tmp_path / "folder") == {"0": tmp_path / "folder" / "0.png"}
    with pytest.raises(InputError, match=r"fused\.jpg is a file, and 9 images need a folder"):
        output_paths(pairs, tmp_path / "fused.jpg")
    for output in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(InputError, match="is one of the inputs"):
            output_paths(pairs, output)
    with pytest.raises(InputError, match="is one of the inputs"):
        output_paths(one, tmp_path / "a" / "0.png")
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken is a file"):
        output_paths(pairs, tmp_path / "taken")
    with pytest.raises(InputError, match="cannot create"):
        output_paths(pairs, tmp_path / "taken" / "out")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_say_where_they_come_from(tmp_path: Path, fuser: Any, pairs: list[Pair], suffix: str) -> None:
    path = tmp_path / f"fused{suffix}"
    fuse_files(fuser, pairs[:1], {"0": path})
    pillow = pytest.importorskip("PIL.Image")
    with pillow.open(path) as image:
        image.load()
        comment = image.text["Comment"] if suffix == ".png" else image.info["comment"].decode()
    record = json.loads(comment)
    assert record["artifact"] == "tiny.onnx"
    assert len(record["sha256"]) == 64
    assert record["checkpoint"] == "tiny.safetensors"
    assert read_image(path).shape == (17, 24, 3)
