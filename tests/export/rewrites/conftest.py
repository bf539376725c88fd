"""A small network with random weights in float64, and the comparison that every rewrite must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from upfusion.config import ModelConfig
from upfusion.export.deploy import DeployNetwork, fix_text
from upfusion.export.rewrites import apply_rewrites
from upfusion.export.rewrites.report import RewriteReport
from upfusion.model import FusionNetwork
from upfusion.text import TextFeatures

CASES = ((1, 8, 16), (3, 24, 40), (1, 32, 24))
"""Batch, height, width."""
LIMIT = 1e-10
"""Largest error of an identity in float64, relative to the largest output: rounding is some 1e-15 here."""


@pytest.fixture(scope="session")
def trained() -> FusionNetwork:
    """A network of every part, small, whose blocks have one to eight heads and hidden widths off multiples of 8."""
    torch.manual_seed(3)
    config = ModelConfig(
        dim=16,
        num_blocks=(1, 1, 1, 2),
        num_refinement_blocks=1,
        text_hidden=32,
        convnext_depths=(1, 1, 2, 1),
        convnext_dims=(8, 16, 16, 32),
    )
    network = FusionNetwork(config).eval().double().requires_grad_(False)
    for weight in network.parameters():
        if weight.ndim < 2:  # scales, shifts, biases, alpha: nothing that is 0 or 1 by luck
            weight.copy_(1 + 0.3 * torch.randn_like(weight))
        else:
            weight.copy_(torch.randn_like(weight) / weight[0].numel() ** 0.5)
    return network


@pytest.fixture(scope="session")
def text() -> TextFeatures:
    features = np.random.Generator(np.random.PCG64(5)).standard_normal((1, 512)).astype(np.float32)
    return TextFeatures(features=features, prompt="any", encoder="random")


@pytest.fixture
def deploy(trained: FusionNetwork, text: TextFeatures) -> DeployNetwork:
    """A fresh deploy form without rewrites."""
    return fix_text(trained, text)[0]


@pytest.fixture(scope="session")
def expected(trained: FusionNetwork, text: TextFeatures):
    """Inputs, and the trained network's output and the plain deploy form's decisions, for every case."""
    plain = fix_text(trained, text)[0]
    features = torch.from_numpy(text.features).double()
    answers = []
    for index, (batch, height, width) in enumerate(CASES):
        generator = torch.Generator().manual_seed(index)
        visible = torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)
        infrared = torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)
        _, decisions = plain.with_decisions(visible, infrared)
        answers.append((visible, infrared, trained(visible, infrared, features), decisions))
    return answers


@pytest.fixture
def rewritten(deploy: DeployNetwork, expected) -> Callable[[Sequence[str]], list[RewriteReport]]:
    """Apply rewrites to a fresh network, assert that it still is the trained one, and return the reports."""

    def apply(names: Sequence[str]) -> list[RewriteReport]:
        reports = apply_rewrites(deploy, names)
        for visible, infrared, fused, decisions in expected:
            got, taken = deploy.with_decisions(visible, infrared)
            error = float((got - fused).abs().max() / fused.abs().max())
            assert error < LIMIT, f"{names} at {tuple(visible.shape)}: relative error {error:.1e}"
            assert taken.keys() == decisions.keys()
            for name, decision in decisions.items():
                assert torch.equal(taken[name], decision), f"{names} at {tuple(visible.shape)}: {name} differs"
        return reports

    return apply
