"""Products of trained weights, taken in float64 and stored in the weights' own type."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def matrix(conv: nn.Conv2d) -> Tensor:
    """Return the weight of a 1x1 convolution (one group) as a float64 (outputs, inputs) matrix."""
    assert conv.kernel_size == (1, 1)
    assert conv.groups == 1
    return conv.weight.detach().double().flatten(1)


def whole_matrix(conv: nn.Conv2d) -> Tensor:
    """Return the weight of a 1x1 convolution as a float64 (outputs, inputs) matrix, with zeros between its groups."""
    assert conv.kernel_size == (1, 1)
    return torch.block_diag(*conv.weight.detach().double().flatten(1).chunk(conv.groups))


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Return a convolution's bias in float64, zeros where it has none."""
    if conv.bias is None:
        return torch.zeros(conv.out_channels, dtype=torch.float64)
    return conv.bias.detach().double()


def frozen(value: Tensor, like: Tensor) -> nn.Parameter:
    """Return a float64 product as a parameter of ``like``'s type that needs no gradient."""
    return nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=False)


def conv_of(weight: Tensor, bias: Tensor | None, like: nn.Conv2d, groups: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps height and width, with these float64 values in the type of ``like``.

    Args:
        weight: (outputs, inputs / groups) or (outputs, inputs / groups, 3, 3).
        bias: (outputs,) or None.
        like: gives the type of the values.
        groups: channel groups.
    """
    weight = weight if weight.ndim == 4 else weight[:, :, None, None]
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2],
        padding=weight.shape[2] // 2,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    conv.weight = frozen(weight, like.weight)
    if bias is not None:
        conv.bias = frozen(bias, like.weight)
    return conv.eval()
