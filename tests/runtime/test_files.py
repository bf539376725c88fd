"""Files are complete or absent, and what keeps them from being written is said with a remedy."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from upfusion.runtime.errors import InputError
from upfusion.runtime.files import check_folder, check_output, create_folder, replacing


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "x.tar.gz"
    with replacing(target) as temporary:
        assert temporary.name.endswith(".tar.gz"), "writers choose the format by it"
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == {"x.tar.gz"}

    def half_written() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_written()
    assert target.read_text() == "new"
    assert names(tmp_path) == {"x.tar.gz"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said(tmp_path: Path, number: int) -> None:
    target = tmp_path / "x.json"
    target.write_text("earlier")
    with pytest.raises(InputError, match=os.strerror(number)) as caught, replacing(target):
        raise OSError(number, os.strerror(number))
    assert "free some space" in caught.value.hint
    assert target.read_text() == "earlier"
    assert names(tmp_path) == {"x.json"}


def test_other_failures_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), replacing(tmp_path / "x"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("")
    for path, problem, remedy in (
        ("folder.onnx", "it is a folder", "name a file"),
        ("none/x.onnx", "No such file", "create the folder"),
        ("file/x.onnx", "Not a directory", "choose another output path"),
        ("x.png", r"ends in \.onnx", r"name it .*x\.png\.onnx"),
    ):
        with pytest.raises(InputError, match=problem) as caught:
            check_output(tmp_path / path, (".onnx",))
        assert re.search(remedy, caught.value.hint), caught.value.hint

    def refused(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    before = names(tmp_path)
    check_output(tmp_path / "x.onnx", (".onnx", ".engine"))
    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(InputError, match="Permission denied"):
        check_output(tmp_path / "x.onnx")
    assert names(tmp_path) == before


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_folder(tmp_path / "a" / "b")
    create_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(InputError, match="file is a file"):
            create_folder(path)
    before = names(tmp_path)
    check_folder(tmp_path / "new" / "folder")
    assert names(tmp_path) == before, "asked, not created"
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(InputError, match="nothing can be written into"):
        create_folder(tmp_path / "a")
    with pytest.raises(InputError, match="nothing can be written into"):
        check_folder(tmp_path / "new")
