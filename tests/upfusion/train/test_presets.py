"""Presets for training: their size, and widths that a GPU likes."""

from __future__ import annotations

import pytest
import torch

from upfusion.config import PRESETS
from upfusion.model import FusionNetwork


def values(name: str) -> tuple[int, int]:
    """Return how many values a preset has without and in its ConvNeXt trunk."""
    with torch.device("meta"):
        network = FusionNetwork(PRESETS[name])
    trunk = sum(parameter.numel() for parameter in network.pruning.trunk.parameters())
    return sum(parameter.numel() for parameter in network.parameters()) - trunk, trunk


def test_small_has_ten_to_twenty_million_values_beside_its_trunk():
    network, trunk = values("small")
    assert 10e6 < network < 20e6
    assert trunk < 6e6


def test_tiny_fits_into_twelve_megabytes():
    assert 4 * sum(values("tiny")) < 12e6


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_hidden_widths_are_multiples_of_eight_and_heads_of_sixteen(name):
    config = PRESETS[name]
    for level in range(1, 5):
        channels = config.channels(level)
        assert int(channels * config.ffn_expansion) % 8 == 0
        assert channels // config.heads[level - 1] == 16
