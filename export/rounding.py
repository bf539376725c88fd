"""Weights rounded to half so that a layer's response to real inputs is kept, not each weight by itself.

Rounding to nearest makes errors that add up in one direction for a given input, and the input of a layer hardly
changes direction from pixel to pixel: the error of the response is a shift of the whole map, which moves pooled means
and with them ranks. Here each weight is rounded after the errors of those before it were spread over those that
follow, in proportion to how alike their inputs are (Frantar et al., GPTQ, ICLR 2023, from optimal brain surgery).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS = 1024
"""About how many places of each image are looked at."""
BLOCK = 64
"""Columns that are rounded before the rest learns of their errors."""
DAMPING = 1e-3
"""Share of the mean square of all inputs that is added to each: inputs that look alike on a few crops need not be."""
MOVES = 16
"""At most so many weights of a row move after all were rounded."""


def round_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor, x: Tensor) -> None:
    """Give a convolution half weights and a half bias that respond to ``x`` as the given float32 values do.

    Args:
        conv: 1x1, or 3x3 with padding 1; its parameters are replaced.
        weight: float32, of the convolution's shape.
        bias: (outputs,), float32.
        x: (B, inputs, H, W), real inputs.
    """
    groups = conv.groups
    rows = weight.double().reshape(groups, conv.out_channels // groups, -1)
    rows = torch.cat([bias.double().reshape(groups, -1, 1), rows], dim=2)
    likeness = damped(input_likeness(x, conv.kernel_size[0], groups))
    rounded = moved_to_neighbours(round_rows(rows, likeness), rows, likeness)
    conv.bias = nn.Parameter(rounded[..., 0].flatten().half(), requires_grad=False)
    conv.weight = nn.Parameter(rounded[..., 1:].reshape(weight.shape).half(), requires_grad=False)


def input_likeness(x: Tensor, kernel: int, groups: int) -> Tensor:
    """Return how alike the inputs of a convolution's weights are: (groups, 1 + n, 1 + n), float64.

    The second moments of the n values that each group's weights meet, behind a one for the bias, over a grid of places
    of each image of (B, C, H, W). Its step is odd: maps that were upsampled differ from one pixel to the next.
    """
    images, channels, height, width = x.shape
    step = math.ceil(math.sqrt(height * width / POSITIONS)) | 1
    places = [slice(start, start + side, step) for side in (height, width) for start in range(kernel)]
    windows = [(..., rows, columns) for rows in places[:kernel] for columns in places[kernel:]]
    padded = F.pad(x, (kernel // 2,) * 4)
    rows, columns = padded[windows[0]].shape[-2:]
    met = torch.empty(groups, 1 + channels // groups * kernel**2, images, rows, columns)
    met[:, 0] = 1
    each = met[:, 1:].unflatten(1, (-1, kernel**2))  # (groups, channels of one, taps, B, rows, columns)
    for tap, window in enumerate(windows):
        each[:, :, tap] = padded[window].transpose(0, 1).unflatten(0, (groups, -1))
    seen = met.flatten(2)
    return (seen @ seen.mT / seen.shape[-1]).double()


def damped(likeness: Tensor) -> Tensor:
    """Return the second moments (groups, n, n) with :data:`DAMPING` on their diagonal."""
    size = likeness.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return likeness + DAMPING * size * torch.eye(likeness.shape[-1], dtype=likeness.dtype)


def round_rows(rows: Tensor, likeness: Tensor) -> Tensor:
    """Return (groups, outputs, n) rounded to half such that ``(row's error) likeness (row's error)`` stays small.

    Column after column: its rounding error goes, in proportion to likeness, into the columns that are not rounded yet.
    Within :data:`BLOCK` columns at once, beyond them by one product, which changes nothing but the time.
    """
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(likeness)), upper=True)
    rows = rows.clone()
    for start in range(0, rows.shape[-1], BLOCK):
        block, within = rows[..., start : start + BLOCK], spread[:, start : start + BLOCK, start : start + BLOCK]
        errors = torch.empty_like(block)
        for column in range(block.shape[-1]):
            exact = block[..., column].clone()
            block[..., column] = exact.half().double()
            errors[..., column] = (exact - block[..., column]) / within[:, column, column, None]
            block[..., column + 1 :] -= errors[..., column, None] * within[:, None, column, column + 1 :]
        rows[..., start + BLOCK :] -= errors @ spread[:, start : start + BLOCK, start + BLOCK :]
    return rows


def moved_to_neighbours(rounded: Tensor, rows: Tensor, likeness: Tensor) -> Tensor:
    """Return rounded (groups, outputs, n) after moves to the next half value that make the row's error smaller.

    The error of a row is ``e L e`` with e = rounded - exact and L the likeness (groups, n, n). Moving weight j by d
    changes it by ``2 d (L e)_j + d^2 L_jj``; in each step every row makes its best move.
    """
    # float32 is enough to compare moves by, and twice as fast; half values and the steps between them are exact in it.
    pull = ((rounded - rows) @ likeness).float()  # L e
    likeness, rounded = likeness.float(), rounded.float()
    own = likeness.diagonal(dim1=-2, dim2=-1)[:, None]
    up, down = steps_around(rounded)
    for _ in range(MOVES):
        step = torch.where(pull > 0, down, up)  # the other way every weight makes the error larger
        gain, place = torch.addcmul(2 * pull, step, own).mul_(step).min(-1, keepdim=True)
        step = torch.where(gain < 0, step.gather(-1, place), 0.0)
        if not step.any():
            break
        rounded.scatter_add_(-1, place, step)
        for steps, found in zip((up, down), steps_around(rounded.gather(-1, place)), strict=True):
            steps.scatter_(-1, place, found)
        pull.addcmul_(step, likeness.gather(-2, place.expand(*place.shape[:-1], likeness.shape[-1])))
    return rounded.double()


def steps_around(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the steps from half values to the next larger and the next smaller half value, all as float32."""
    half = values.half()
    up, down = (torch.nextafter(half, torch.full_like(half, end)).float() - values for end in (math.inf, -math.inf))
    return up, down
