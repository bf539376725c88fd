"""How good the weights are: the paper's metrics on held-out pairs, and pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upfusion.metrics import PAPER_METRICS, evaluate
from upfusion.runtime.images import Image, finish, gray8, prepare

Picture = NDArray[np.uint8]


@torch.no_grad()
def fused_image(network: nn.Module, text: Tensor, first: Image, second: Image) -> Picture:
    """Return the fused luma (H, W) of a pair, with the runtime's padding and rounding. The network is in eval mode."""
    visible, infrared = prepare(first, second)
    planes = (torch.from_numpy(plane).to(text.device) for plane in (visible, infrared))
    fused = network(*planes, text)[0, 0].float().cpu().numpy()
    return finish(fused, *second.shape[:2])


def validate(
    network: nn.Module, text: Tensor, pairs: Sequence[tuple[Image, Image]], samples: int = 4
) -> tuple[dict[str, float], list[Picture]]:
    """Return the mean of each of the paper's metrics, and first | second | fused of the first few pairs."""
    was_training = network.training
    network.eval()
    values: list[dict[str, float]] = []
    pictures: list[Picture] = []
    for first, second in pairs:
        fused = fused_image(network, text, first, second)
        sources = gray8(first), gray8(second)
        values.append(evaluate(*sources, fused, PAPER_METRICS))
        if len(pictures) < samples:
            pictures.append(np.hstack([*sources, fused]))
    network.train(was_training)
    return {name: float(np.mean([value[name] for value in values])) for name in PAPER_METRICS}, pictures
