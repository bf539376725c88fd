from __future__ import annotations

import torch

from upfusion.export.rewrites.band_gram import BandedGram, band_gram
from upfusion.export.rewrites.open_attention import CosineOfMaps


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["normalize_gram", "band_gram"])[-1]
    assert report.rewritten == 4  # blocks at full resolution: two encoders, decoder, refinement
    assert band_gram(deploy).rewritten == 0  # nothing is left to change the second time


def test_keeps_the_floor_of_the_norms():
    """Rows of zeros give zeros, and rows shorter than the floor are divided by it, as F.normalize does."""
    q, k = torch.randn(2, 1, 2, 4, 16, 10, dtype=torch.float64)
    q[0, 0, 1] = 0
    k[0, 1, 2] *= 1e-14
    want = CosineOfMaps()((q, k), 1)
    assert torch.allclose(BandedGram()((q, k), 1), want, rtol=1e-12, atol=0)
    assert torch.allclose(BandedGram()((torch.cat([q, k], 1),), 1), want, rtol=1e-12, atol=0)


def test_does_nothing_without_its_need(rewritten):
    assert rewritten(["band_gram"])[-1].rewritten == 0
