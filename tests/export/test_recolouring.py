"""Crops in other colours, behind the real ones."""

from __future__ import annotations

import torch

from upfusion.export.recolouring import with_recoloured


def test_real_crops_come_first_and_each_is_seen_in_other_colours():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.rand(6, 3, 8, 16, generator=generator), torch.rand(6, 1, 8, 16, generator=generator)
    colours, grey = with_recoloured(first, second)
    assert torch.equal(colours[:6], first)
    assert torch.equal(grey[:6], second)
    shares = (colours[6:] / first).flatten(2)
    assert torch.allclose(shares, shares[..., :1].expand_as(shares), atol=1e-5)  # a share for each channel
    assert len(shares[..., 0].mul(1e4).round().unique()) == 18
    assert torch.equal(grey[6::2], 1 - second[::2])
    for before, after in zip(second[1::2], grey[7::2], strict=True):
        assert torch.equal(before.flatten().argsort(), after.flatten().argsort())  # bent: the same order of levels
    assert grey.min() >= 0
    assert grey.max() <= 1


def test_the_colours_are_the_same_every_time():
    planes = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    assert all(map(torch.equal, with_recoloured(*planes), with_recoloured(*planes)))
