"""Options as the user writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from upfusion.export.builder.options import BuildOptions, engines_from_pattern, targets_from_text
from upfusion.runtime.errors import InputError


@pytest.mark.parametrize("text", ["sm86,sm89", "SM86, SM_89", "8.6,8.9"])
def test_targets_as_people_write_them(text: str) -> None:
    assert targets_from_text(text) == ("sm86", "sm89")


@pytest.mark.parametrize("text", [None, ""])
def test_no_targets(text: str | None) -> None:
    assert targets_from_text(text) == ()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"builder": "tvm"}, "there is no builder 'tvm'"),
        ({"targets": ("ada",)}, "'ada' is no compute capability"),
        ({"targets": ("sm86", "sm86")}, "named twice"),
        ({"workspace_bytes": 0}, "workspace"),
        ({"aux_streams": -1}, "--aux-streams 0 or more"),
        ({"optimization_level": 6}, "optimization level 6 does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        BuildOptions(**options)
    assert caught.value.hint


def test_one_engine_for_all_targets_or_one_for_each() -> None:
    options = BuildOptions(targets=("sm86", "sm89"))
    assert engines_from_pattern("out/fusion.engine", options) == [(Path("out/fusion.engine"), options)]
    assert engines_from_pattern("out/fusion.{target}.engine", options) == [
        (Path("out/fusion.sm86.engine"), BuildOptions(targets=("sm86",))),
        (Path("out/fusion.sm89.engine"), BuildOptions(targets=("sm89",))),
    ]


def test_a_file_per_target_needs_targets() -> None:
    with pytest.raises(InputError, match="no target is given"):
        engines_from_pattern("fusion.{target}.engine", BuildOptions())
