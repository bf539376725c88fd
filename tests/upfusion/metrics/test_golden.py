"""Equality with the public reference implementations on the golden cases."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from upfusion.metrics import METRICS, PAPER_METRICS, Sources, evaluate, evaluate_sources

# Relative. The first five as the golden files state them: spread of independent float64 implementations, with a
# margin (VIF: rounding noise of flat windows beside 1e-10 thresholds; Q_P: a pixel may change sides of 0.1).
# The others are sums and logarithms over pixels; the golden values have ten digits.
RELATIVE = {"Q_NCIE": 1e-9, "Q_P": 1e-5, "VIF": 1e-6, "SSIM": 1e-7, "Qabf": 1e-9}
OTHERS_RELATIVE = 1e-9
ABSOLUTE = 1e-7  # near zero, as the golden files state it

EVALUATOR_NAMES = ("EN", "SD", "SF", "AG", "MI", "MSE", "CC", "PSNR", "SCD")

NATURAL = [
    "msrs_00004N_average",
    "msrs_00004N_maximum",
    "msrs_00004N_laplacian",
    "msrs_00055D_laplacian",
    "msrs_00537D_piafusion",
    "roadscene_FLIR_00550_maximum",
    "roadscene_FLIR_00306_laplacian",
    "tno_07_average",
    "llvip_190001_laplacian",
    "m3fd_01320_laplacian",
    "ct_mri_16009_average",
    "pet_mri_25022_laplacian",
    "spect_mri_10018_maximum",
    "spect_mri_36034_laplacian",
    "spect_mri_36034_laplacian_floor1",
    "gfp_pc_001_laplacian",
]
EDGE = [
    "identical",
    "fused_is_A",
    "fused_constant",
    "A_black_fused_is_B",
    "A_constant",
    "inverted",
    "size16",
    "size32",
    "size40",
    "size41",
    "size33x57",
    "noise",
    "all_constant_equal",
    "all_zero",
    "all_constant_different",
    "binary",
]


def load(golden: Path, file: str, name: str) -> tuple[list[np.ndarray], dict]:
    folder = golden / "metrics"
    cases = {case["id"]: case for case in json.loads((folder / file).read_text())["cases"]}
    case = cases[name]
    return [cv2.imread(str(folder / case[key]), cv2.IMREAD_GRAYSCALE) for key in "ABF"], case


def reference(case: dict) -> dict[str, float | str]:
    """The golden values under our names; a string where the reference has no value."""
    values = dict(case["golden"])
    values |= {name: case["evaluator_float64"][name] for name in EVALUATOR_NAMES}
    values["NMI"] = case["toolbox_extra"]["Q_MI"]
    values["SSIM_mean_range255"] = case["variants"]["SSIM_mean_range255"]
    return values


def near(name: str, value: float) -> object:
    return pytest.approx(value, rel=RELATIVE.get(name, OTHERS_RELATIVE), abs=ABSOLUTE)


@pytest.mark.parametrize("name", NATURAL)
def test_natural_cases_equal_the_references(golden: Path, name: str) -> None:
    (first, second, fused), case = load(golden, "cases.json", name)
    expected = reference(case)
    assert all(isinstance(value, float) for value in expected.values())
    found = evaluate(first, second, fused, expected)
    wrong = {key: (found[key], value) for key, value in expected.items() if found[key] != near(key, value)}
    assert not wrong


@pytest.mark.parametrize("name", EDGE)
def test_edge_cases_equal_the_references_where_these_have_a_value(golden: Path, name: str) -> None:
    (first, second, fused), case = load(golden, "edge.json", f"edge_{name}")
    expected = {key: value for key, value in reference(case).items() if isinstance(value, float)}
    found = evaluate(first, second, fused, expected)
    wrong = {key: (found[key], value) for key, value in expected.items() if found[key] != near(key, value)}
    assert not wrong


@pytest.mark.parametrize("name", ["A_black_fused_is_B", "A_constant", "all_constant_equal", "all_zero"])
def test_vif_of_a_constant_source_is_that_of_the_authors_evaluator(golden: Path, name: str) -> None:
    (first, second, fused), case = load(golden, "edge.json", f"edge_{name}")
    assert isinstance(case["golden"]["VIF"], str)  # the toolbox has no value
    found = evaluate(first, second, fused, ["VIF"])["VIF"]
    assert found == near("VIF", case["variants"]["VIF_sum_evaluator"] / 2)


@pytest.mark.parametrize("name", EDGE)
def test_edge_cases_are_finite_and_in_range(golden: Path, name: str) -> None:
    images, _ = load(golden, "edge.json", f"edge_{name}")
    for key, value in evaluate(*images).items():
        # A bound may be passed by rounding: sums of up to 4096 terms of size 1.
        assert METRICS[key].lowest - 1e-12 <= value <= METRICS[key].highest + 1e-12, key


def test_what_is_kept_of_the_sources_changes_no_value(golden: Path) -> None:
    (first, second, fused), _ = load(golden, "cases.json", "ct_mri_16009_average")
    pair = Sources(first, second)
    evaluate_sources(pair, first)  # fills everything kept, with another fused image
    assert evaluate_sources(pair, fused) == evaluate(first, second, fused)


def test_one_grey_level_on_a_black_background_decides_ssim(golden: Path) -> None:
    """The sensitivity that tables of SSIM are annotated with: zeros that became ones."""
    (first, second, black), _ = load(golden, "cases.json", "spect_mri_36034_laplacian")
    _, _, lifted = load(golden, "cases.json", "spect_mri_36034_laplacian_floor1")[0]
    before, after = (evaluate(first, second, fused) for fused in (black, lifted))
    assert np.abs(black.astype(int) - lifted).max() == 1
    assert before["SSIM"] > 0.79
    assert after["SSIM"] < 0.21
    assert after["SSIM_mean_range255"] > 0.74
    for name in set(PAPER_METRICS) - {"SSIM"}:
        assert after[name] == pytest.approx(before[name], rel=0.011), name
