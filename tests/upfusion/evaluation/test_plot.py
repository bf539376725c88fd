"""The picture of a table."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import pytest

from upfusion.evaluation.plot import KINDS, PANEL_INCHES, write_plot
from upfusion.evaluation.table import MethodInfo, Table, table_from
from upfusion.runtime.errors import InputError, MissingDependencyError


def table(pairs: int, dataset: str = "MSRS") -> Table:
    values = {
        method: {str(i): {"Q_NCIE": 0.8 + 0.01 * i * step, "SSIM": 0.3 * step} for i in range(pairs)}
        for method, step in (("average", 0.1), ("fusion", 0.5))
    }
    methods = {name: MethodInfo(kind="baseline", identity=name) for name in values}
    return table_from(dataset, "test", ["Q_NCIE", "SSIM"], methods, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1, 6])
def test_a_row_per_dataset_and_a_panel_per_metric(tmp_path: Path, kind, pairs: int) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    write_plot([table(pairs), table(pairs, "my own")], tmp_path / "plot.png", kind)
    height, width = cv2.imread(str(tmp_path / "plot.png")).shape[:2]
    assert (height, width) == (round(2 * PANEL_INCHES[1] * 150), round(2 * PANEL_INCHES[0] * 150))
    assert list(tmp_path.iterdir()) == [tmp_path / "plot.png"]


def test_vector_formats(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    write_plot([table(3)], tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_other_file_types_and_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot plot to \.gif"):
        write_plot([table(3)], tmp_path / "plot.gif")
    with pytest.raises(InputError, match="unknown plot 'pie'"):
        write_plot([table(3)], tmp_path / "plot.png", "pie")  # type: ignore[arg-type]


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError) as raised:
        write_plot([table(3)], tmp_path / "plot.png")
    assert "pip install 'upfusion[metrics]'" in raised.value.hint
