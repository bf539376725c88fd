"""Hidden widths of the feed-forward padded to multiples of 8."""

from __future__ import annotations

import torch
from torch import Tensor

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of
from upfusion.model.layers import GatedFeedForward

MULTIPLE = 8


def pad_hidden(deploy: DeployNetwork) -> RewriteReport:
    """Append zero channels to both halves of the hidden maps, up to a multiple of 8.

    A zero channel stays zero through the depthwise convolution, and::

        gelu(0) * 0 = 0

    so the projection adds nothing, whatever its columns (zero here). int(2.66 C) = 127, 255, 510, 1021 become 128,
    256, 512, 1024: tensor cores read rows of 8 halves, and other widths are copied to a padded layout first.
    Costs up to 0.8 % more multiplications. Declines where the width already is a multiple of 8.
    """
    done = 0
    aligned = set()
    for module in deploy.modules():
        if not isinstance(module, GatedFeedForward):
            continue
        hidden = module.project.in_channels
        extra = -hidden % MULTIPLE
        if not extra:
            aligned.add(hidden)
            continue
        rows = _with_zero_rows(module.expand.weight.double(), extra)
        bias = None if module.expand.bias is None else _with_zero_rows(bias_of(module.expand), extra)
        module.expand = conv_of(rows, bias, like=module.expand)
        depthwise = _with_zero_rows(module.depthwise.weight.double(), extra)
        module.depthwise = conv_of(depthwise, None, like=module.depthwise, groups=2 * (hidden + extra))
        columns = torch.nn.functional.pad(module.project.weight.double(), (0, 0, 0, 0, 0, extra))
        module.project = conv_of(columns, None, like=module.project)
        done += 1
    skipped = tuple(f"{hidden} hidden channels are a multiple of {MULTIPLE} already" for hidden in sorted(aligned))
    return RewriteReport("pad_hidden", done, skipped if not done else ())


def _with_zero_rows(values: Tensor, extra: int) -> Tensor:
    """Append ``extra`` zero rows to each half of the first axis."""
    zeros = torch.zeros(extra, *values.shape[1:], dtype=values.dtype)
    first, second = values.detach().chunk(2)
    return torch.cat([first, zeros, second, zeros])
