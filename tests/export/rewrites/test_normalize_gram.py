from __future__ import annotations

import torch

from upfusion.export.rewrites.normalize_gram import NormalizedGram, normalize_gram
from upfusion.export.rewrites.open_attention import CosineOfMaps


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["normalize_gram"])[-1]
    assert report.rewritten == 18  # 14 blocks and 4 perturbation modules
    assert normalize_gram(deploy).rewritten == 0  # nothing is left to change the second time


def test_keeps_the_floor_of_the_norms():
    """Rows of zeros give zeros, and rows shorter than the floor are divided by it, as F.normalize does."""
    q, k = torch.randn(2, 1, 2, 4, 50, dtype=torch.float64)
    q[0, 0, 1] = 0
    k[0, 1, 2] *= 1e-14
    want = CosineOfMaps()(q, k)
    assert torch.allclose(NormalizedGram()(q, k), want, rtol=1e-12, atol=0)
    assert not want[0, 0, 1].any()


def test_sums_in_float32_where_half_overflows():
    """Sums of squares of 300 over 1000 pixels are 9e7; half ends at 65,504."""
    maps = torch.full((1, 1, 2, 1000), 300.0).half()
    assert torch.allclose(NormalizedGram()(maps, maps), torch.ones(1, 1, 2, 2), rtol=1e-6)
