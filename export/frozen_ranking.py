"""Decisions as constants: the majority of a calibration instead of a ranking per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upfusion.export.accuracy.levels import levels
from upfusion.export.deploy import DeployNetwork, GatheredEntry, Rank, stacked
from upfusion.export.rewrites.open_attention import OpenSelectiveAttention, open_attentions
from upfusion.export.rewrites.weights import bias_of, conv_of, matrix
from upfusion.metrics import PAPER_METRICS, evaluate
from upfusion.runtime.calibration_file import Calibration
from upfusion.runtime.images import finish, luma, prepare

Constants = dict[str, Any]
"""By decision: the order, or for masks ``shape`` and the flat places that are ``dropped``."""


class FrozenPruning(nn.Module):
    """Semantic channel pruning with a fixed order: one 1x1 convolution."""

    def __init__(self, select: nn.Conv2d, order: Tensor, channels: int) -> None:
        """Spread the trained convolution's columns over the channels that the order names."""
        super().__init__()
        self.conv = conv_of(_spread(matrix(select), order, channels), None, like=select)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        result: Tensor = self.conv(x)
        return result


class FrozenEntry(nn.Module):
    """Both inputs of a perturbation module's attention by one 1x1 convolution."""

    def __init__(self, entry: GatheredEntry, order: Tensor) -> None:
        """Fold selection and permutation into the trained weights.

        With S the selection, P the prompt's permutation, mix (W1, b1) and merge (W, b)::

            query = (W P W1 S) x + (W P b1 + b),    source = W x + b
        """
        super().__init__()
        merge, bias = matrix(entry.merge), bias_of(entry.merge)
        mix, mix_bias = matrix(entry.mix)[entry.permutation], bias_of(entry.mix)[entry.permutation]
        query = _spread(merge @ mix, order, merge.shape[1])
        self.conv = conv_of(torch.cat([query, merge]), torch.cat([merge @ mix_bias + bias, bias]), like=entry.merge)

    def forward(self, streams: tuple[Tensor, ...], rank: Rank) -> tuple[Tensor, Tensor]:
        """Return the maps of the query and of keys and values, (B, C, H, W) each; nothing is ranked."""
        query, source = self.conv(stacked(streams)).chunk(2, dim=1)
        return query, source


class FrozenMask(nn.Module):
    """The same attention entries stay for every image."""

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        """Own the mask (1, heads, c, c)."""
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the mask; the logits only say how it would have been chosen."""
        return self.keep


def freeze_ranking(deploy: DeployNetwork, calibration: Calibration) -> Constants:
    """Replace every decision by the calibration's majority; return the constants for the manifest.

    The ConvNeXt trunk, the squeeze branches and every TopK go, and the selections are folded into weights in
    float64. To be called on the plain deploy form, before rewrites. The result is not the trained network: what that
    costs is measured, never assumed.
    """
    network = deploy.network
    constants: Constants = {}

    def majority(name: str) -> Tensor:
        return torch.tensor(calibration.decisions[name].majority, dtype=torch.int64)

    order = majority("scpm.order")
    constants["scpm.order"] = order.tolist()
    network.pruning = FrozenPruning(network.pruning.select, order, network.config.dim)
    open_attentions(deploy)
    for level, perturb in enumerate(network.perturbations, start=1):
        order = majority(f"tcpm{level}.order")
        constants[f"tcpm{level}.order"] = order.tolist()
        perturb.entry = FrozenEntry(perturb.entry, order)
        for name in ("squeeze", "squash", "score", "order"):
            delattr(perturb, name)
        attention = perturb.attention
        assert isinstance(attention, OpenSelectiveAttention)
        channels = attention.query_depthwise.out_channels // attention.heads
        shape = [attention.heads, channels, channels]
        keep = torch.ones(shape, dtype=torch.bool).flatten()
        keep[majority(f"tcpm{level}.keep")] = False
        constants[f"tcpm{level}.keep"] = {"shape": shape, "dropped": majority(f"tcpm{level}.keep").tolist()}
        attention.mask = FrozenMask(keep.reshape(1, *shape))
    return constants


NEEDS_DECISIONS = ("fold_prompt", "rank_logits", "gather_weights", "read_streams_once", "threshold_mask",
                   "fold_front_end", "fold_trunk_scales")  # fmt: skip
"""Rewrites of what a frozen form no longer has."""


def frozen_decisions(constants: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return frozen decisions as the network would take them for one image."""
    decisions: dict[str, Tensor] = {}
    for name, record in constants.items():
        if name.endswith(".order"):
            decisions[name] = torch.tensor([record])
        else:
            keep = torch.ones(record["shape"], dtype=torch.bool).flatten()
            keep[torch.tensor(record["dropped"], dtype=torch.int64)] = False
            decisions[name] = keep.reshape(1, *record["shape"])
    return decisions


def price(dynamic: DeployNetwork, frozen: DeployNetwork, calibration: Calibration) -> list[dict[str, Any]]:
    """Return what freezing costs on each of the calibration's crops, both forms in float32.

    The 8-bit images' PSNR and SSIM against dynamic ranking, and the paper's fusion metrics of both (dynamic, frozen).
    """
    found = []
    for sample in calibration.samples:
        visible, infrared = sample.images()
        gray = visible if visible.ndim == 2 else np.rint(luma(visible)).astype(np.uint8)
        planes = tuple(map(torch.from_numpy, prepare(visible, infrared)))
        with torch.no_grad():
            wanted, got = (finish(form(*planes).numpy()[0, 0], *gray.shape) for form in (dynamic, frozen))
        metrics = [evaluate(gray, infrared, image, PAPER_METRICS) for image in (wanted, got)]
        apart = levels(got, wanted, sample.name)
        found.append(
            {
                "pair": sample.name,
                "psnr_db": apart.psnr_db,
                "ssim": apart.ssim,
                "max_levels": apart.max_levels,
                "metrics": {name: [values[name] for values in metrics] for name in PAPER_METRICS},
            }
        )
    return found


def _spread(weight: Tensor, order: Tensor, channels: int) -> Tensor:
    """Return (outputs, channels) whose column ``order[j]`` is column j of ``weight``, the others zero."""
    spread = torch.zeros(weight.shape[0], channels, dtype=weight.dtype)
    spread[:, order] = weight
    return spread
