from __future__ import annotations

import torch

from upfusion.export.rewrites import apply_rewrites, chosen_rewrites
from upfusion.export.rewrites.attend_in_strips import SelfProductInStrips, attend_in_strips

LEAN = chosen_rewrites("tensorrt", lean=True)


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(LEAN)[-1]
    assert report.name == "attend_in_strips"
    # One block of the decoder and one of the refinement at full resolution, and the perturbation module there.
    assert report.rewritten == 3
    assert attend_in_strips(deploy).rewritten == 0  # nothing is left to change the second time


def test_does_nothing_without_its_needs(deploy):
    assert attend_in_strips(deploy).rewritten == 0
    apply_rewrites(deploy, [name for name in LEAN if name not in ("attend_channels_last", "attend_in_strips")])
    assert attend_in_strips(deploy).rewritten == 0


def test_no_map_of_queries_and_keys_is_as_high_as_the_image(deploy):
    """That is what the strips are for: each convolution sees a quarter of the rows and one beyond at each cut."""
    apply_rewrites(deploy, LEAN)
    heights = []
    products = [module for module in deploy.modules() if isinstance(module, SelfProductInStrips)]
    for product in products:
        product.pointwise.register_forward_hook(lambda _, __, maps: heights.append(maps.shape[2]))
    deploy(torch.rand(1, 3, 32, 24).double(), torch.rand(1, 1, 32, 24).double())
    assert heights == [9, 10, 10, 9] * len(products)
