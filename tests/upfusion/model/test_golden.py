"""Our network gives the golden numbers: outputs, rankings, every stored intermediate tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden_adapter import load

RECIPES = ("full", "reduced", "full-ranks", "reduced-ranks")
RELATIVE_LIMIT = 2e-5
"""Of the largest golden value, as FACTS.md section 7 suggests: another thread count moves outputs by 6e-6."""


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest, golden: Path):
    """A recipe's name and its network, run on numpy arrays."""
    import make_weights

    settings = make_weights.load_recipe(golden / "recipe.json", request.param)
    config = json.loads((golden / settings["keys_file"]).read_text())["config"]
    return request.param, load(make_weights.make_state_dict(settings), config)


def calls_of(case: dict[str, np.ndarray]):
    """Yield prefix, visible, infrared and text of each call that a golden file holds."""
    if "output" in case:
        yield "", case["vis"], case["ir"], case["text"]
    else:
        yield "text2/", case["vis"], case["ir"], case["text2"]
        yield "ir3/", case["vis_a"], case["ir3"], case["text"]
        yield "vis1/", case["vis1"], case["ir_b"], case["text"]


def test_every_stored_tensor(recipe, golden: Path):
    name, run = recipe
    files = sorted(golden.glob(f"{name}_*.npz"))
    assert files
    compared = set()
    for file in files:
        case = dict(np.load(file))
        inputs = {"vis", "ir", "text", "text2", "vis_a", "vis1", "ir3", "ir_b"}
        for prefix, *arguments in calls_of(case):
            got = run(*arguments)
            for key in case:
                short = key.removeprefix(prefix)
                if key in inputs or not key.startswith(prefix) or "/" in short:
                    continue
                want, value = case[key], got[short.removesuffix("@2")]
                if key.endswith("@2"):
                    value = value[..., ::2, ::2]
                if want.dtype.kind in "ib":
                    np.testing.assert_array_equal(value, want, err_msg=f"{file.name} {key}")
                else:
                    limit = RELATIVE_LIMIT * max(1.0, float(np.abs(want).max()))
                    np.testing.assert_allclose(value, want, rtol=0, atol=limit, err_msg=f"{file.name} {key}")
                compared.add(short)
    assert {"output", "scpm.indices", "tcpm4.permutation"} <= compared
