"""All rewrites together."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch

from upfusion.export.deploy import fix_text, use_half_maps
from upfusion.export.rewrites import DEFAULTS, NAMES, apply_rewrites, chosen_rewrites
from upfusion.runtime.errors import InputError
from upfusion.text import TextFeatures

SETS = {
    "tensorrt": DEFAULTS["tensorrt"],
    "cpu": DEFAULTS["cpu"],
    "lean": chosen_rewrites("tensorrt", lean=True),
    "all": NAMES,
}


@pytest.mark.parametrize("name", SETS)
def test_sets_are_the_same_network_in_float64(rewritten, name):
    rewritten(SETS[name])


@pytest.mark.parametrize("without", NAMES)
def test_each_can_be_left_out(rewritten, without):
    reports = rewritten([name for name in DEFAULTS["tensorrt"] if name != without])
    assert without not in [report.name for report in reports]


def test_unknown_names_are_refused(deploy):
    with pytest.raises(InputError, match="no rewrite is called fold_everything"):
        apply_rewrites(deploy, ["fold_everything"])


@pytest.mark.parametrize("name", SETS)
def test_half_maps_stay_close_and_finite(trained, text, name):
    """FP16 maps, decisions imposed by nobody: only that every part takes half maps and gives an image back."""
    network = fix_text(trained, text)[0].float()
    apply_rewrites(network, SETS[name])
    visible, infrared = torch.rand(1, 3, 16, 24), torch.rand(1, 1, 16, 24)
    wanted = network(visible, infrared)
    use_half_maps(network)
    fused = network(visible, infrared)
    assert fused.dtype == torch.float32
    assert fused.isfinite().all()
    assert fused.shape == wanted.shape


@pytest.mark.parametrize("name", ["tensorrt", "cpu"])  # half a minute each; every set runs on the small network
def test_golden_weights_in_float64(golden_networks, name):
    """Recipe ``full`` at 64x64: the rewritten base network is the plain one, with equal decisions."""
    plain, text, visible, infrared, (wanted, decisions) = golden_networks
    network = fix_text(plain, text)[0]
    reports = apply_rewrites(network, SETS[name])
    with torch.no_grad():
        fused, taken = network.with_decisions(visible, infrared)
    error = float((fused - wanted).abs().max() / wanted.abs().max())
    assert error < 1e-10, f"relative error {error:.1e}"
    assert all(torch.equal(taken[key], value) for key, value in decisions.items())
    places = {report.name: report.rewritten for report in reports}
    assert places["normalize_gram"] == 72  # 68 blocks, 4 perturbation modules
    assert places["fold_trunk_scales"] == 36


@pytest.fixture(scope="module")
def golden_networks(golden):
    """The base network with the golden recipe's weights in float64, the case's inputs, and the plain form's answer."""
    from golden_adapter import network_of

    make_weights = importlib.import_module("make_weights")
    recipe = make_weights.load_recipe(golden / "recipe.json", "full")
    config = json.loads((golden / recipe["keys_file"]).read_text())["config"]
    network = network_of(make_weights.make_state_dict(recipe), config).double()
    case = np.load(golden / "full_64x64.npz")
    visible, infrared = (torch.from_numpy(case[key]).double() for key in ("vis", "ir"))
    text = TextFeatures(features=case["text"].astype(np.float32), prompt="golden", encoder="recipe")
    with torch.no_grad():
        answer = fix_text(network, text)[0].with_decisions(visible, infrared)
    return network, text, visible, infrared, answer
