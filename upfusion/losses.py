"""What training minimises: the paper's terms, and differentiable forms of three fusion metrics.

A fourth metric, Q_P, is large enough for its own file: ``upfusion.phase_loss``.

Images are (B, 1, H, W) float in 0..1. Every term is a scalar mean over the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))


def channel_mean(image: Tensor) -> Tensor:
    """Return the plain mean over the channels, (B, 1, H, W): what the authors' loss compares with, not luma."""
    return image.mean(1, keepdim=True)


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the horizontal and vertical Sobel responses of (B, 1, H, W), zero padding 1, cross-correlation."""
    kernels = image.new_tensor([SOBEL_X, SOBEL_Y])[:, None]
    horizontal, vertical = F.conv2d(image, kernels, padding=1).chunk(2, dim=1)
    return horizontal, vertical


def sobel_magnitude(image: Tensor) -> Tensor:
    """Return ``|I * Kx| + |I * Ky|``, (B, 1, H, W)."""
    horizontal, vertical = sobel(image)
    return horizontal.abs() + vertical.abs()


def intensity_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ``mean |X - max(A, B)|`` (paper eq. 5)."""
    return F.l1_loss(fused, torch.maximum(first, second))


def gradient_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ``mean |S(X) - max(S(A), S(B))|`` with S the Sobel magnitude (paper eq. 4)."""
    target = torch.maximum(sobel_magnitude(first), sobel_magnitude(second))
    return F.l1_loss(sobel_magnitude(fused), target)


def gaussian_window(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return a normalised 1-D Gaussian of the given length."""
    x = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    window = torch.exp(-x.square() / (2 * sigma**2))
    return window / window.sum()


def separably_filtered(maps: Tensor, window: Tensor, padding: int = 0) -> Tensor:
    """Filter each channel of (B, C, H, W) separably with a symmetric 1-D window."""
    channels, size = maps.shape[1], window.numel()
    rows = window.view(1, 1, size, 1).expand(channels, 1, size, 1)
    columns = window.view(1, 1, 1, size).expand(channels, 1, 1, size)
    return F.conv2d(
        F.conv2d(maps, rows, padding=(padding, 0), groups=channels),
        columns,
        padding=(0, padding),
        groups=channels,
    )


def _moments(x: Tensor, y: Tensor, window: Tensor, padding: int = 0) -> tuple[Tensor, ...]:
    """Return local means, variances (biased, ``E[x^2] - mean^2``) and the covariance of two images."""
    stacked = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    mean_x, mean_y, xx, yy, xy = separably_filtered(stacked, window, padding).chunk(5, dim=1)
    return mean_x, mean_y, xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean SSIM: 11x11 Gaussian window, sigma 1.5, zero padding 5, for the range 0..1."""
    mean_x, mean_y, var_x, var_y, covariance = _moments(x, y, gaussian_window(11, 1.5, x), padding=5)
    c1, c2 = 0.01**2, 0.03**2
    ratio = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (ratio / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()


def ssim_weights(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return each source's share of the mean Sobel magnitude, over the whole batch at once; halves without any."""
    a, b = sobel_magnitude(first).mean(), sobel_magnitude(second).mean()
    total = a + b
    if not total > 0:
        half = torch.full_like(total, 0.5)
        return half, half
    return a / total, b / total


def structure_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ``1 - (w_A SSIM(A, X) + w_B SSIM(B, X))``, the weights from :func:`ssim_weights`."""
    weight_first, weight_second = ssim_weights(first, second)
    return 1 - (weight_first * ssim(first, fused) + weight_second * ssim(second, fused))


def as_written(fused: Tensor) -> Tensor:
    """Return the grey levels 0..255 that an 8-bit file would hold; the gradient passes as if nothing was rounded.

    Metrics with constants as small as SSIM's with range 2 see a single grey level, so the terms below do too. Beyond
    black and white there is no gradient: with one, bright scenes learn to leave the range without end.
    """
    levels = (fused * 255).clamp(0, 255)
    return levels + (levels.round() - levels).detach()


def metric_ssim_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return 1 minus the SSIM that fusion papers print: 7x7 uniform window, range 2 on grey levels 0..255.

    Mean over the two sources, windows inside the image only, sample variance.
    """
    levels = as_written(fused)
    window = fused.new_full((7,), 1 / 7)
    c1, c2, sample = (0.01 * 2) ** 2, (0.03 * 2) ** 2, 49 / 48
    total = fused.new_zeros(())
    for source in (first * 255, second * 255):
        mean_x, mean_y, var_x, var_y, covariance = _moments(source, levels, window)
        ratio = (2 * mean_x * mean_y + c1) * (2 * sample * covariance + c2)
        spread = sample * (var_x.clamp(min=0) + var_y.clamp(min=0))
        total = total + (ratio / ((mean_x**2 + mean_y**2 + c1) * (spread + c2))).mean() / 2
    return 1 - total


def visual_information_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return 1 minus the pixel-domain visual information fidelity (Sheikh & Bovik 2006), mean of the two sources.

    Four scales with windows of 17, 9, 5 and 3, noise variance 2. Each image has its own ratio, as in the metric's mean
    over pairs: summed over the batch, a night image would count for nothing beside a day image.
    """
    total = fused.new_zeros(fused.shape[0])
    for source in (first * 255, second * 255):
        reference, distorted = source, as_written(fused)
        shared = information = fused.new_zeros(fused.shape[0])
        for scale in range(1, 5):
            size = 2 ** (5 - scale) + 1
            window = gaussian_window(size, size / 5, fused)
            if scale > 1:
                both = separably_filtered(torch.cat([reference, distorted], dim=1), window)[..., ::2, ::2]
                reference, distorted = both.chunk(2, dim=1)
            _, _, var_x, var_y, covariance = _moments(reference, distorted, window)
            var_x, var_y = var_x.clamp(min=0), var_y.clamp(min=0)
            # 1e-2 grey levels squared instead of the metric's 1e-10: float32 sums of squares end there.
            gain = (covariance / (var_x + 1e-2)).clamp(min=0)
            noise = (var_y - gain * covariance).clamp(min=1e-2)
            shared = shared + torch.log1p(gain**2 * var_x / (noise + 2)).sum((1, 2, 3))
            information = information + torch.log1p(var_x / 2).sum((1, 2, 3))
        total = total + shared / (information + 1) / 2
    return 1 - total.mean()


def edge_transfer_loss(fused: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return 1 minus a smooth Q^{AB/F} (Xydeas & Petrovic 2000), the mean of each image's own.

    The metric's angle ``atan(Sy / Sx)`` has period pi. Its difference is taken here from the cosine between the
    gradients, which has a gradient everywhere. But the metric does not close the circle: two gradients that lie on
    either side of the vertical are half a turn apart to it, so a level edge is lost if one tilts by a grey level. On a
    pixel where the shorter way leads past the vertical, the quality is multiplied by how surely both lie on one side.
    """
    floor = 1.0  # grey levels; below it a Sobel response is rounding
    fused_x, fused_y = sobel(as_written(fused))
    strength = (fused_x**2 + fused_y**2 + floor).sqrt()
    kept = total = fused.new_zeros(fused.shape[0])
    for source in (first * 255, second * 255):
        source_x, source_y = sobel(source)
        weight = (source_x**2 + source_y**2 + floor).sqrt()
        ratio = torch.minimum(strength / weight, weight / strength)
        cosine = ((fused_x * source_x + fused_y * source_y).abs() + floor) / (strength * weight)
        angle = 1 - cosine.clamp(0, 1 - 1e-4).acos() / (torch.pi / 2)
        quality = 0.9994 * torch.sigmoid(15 * (ratio - 0.5)) * 0.9879 * torch.sigmoid(22 * (angle - 0.8))
        steep = (fused_y * source_y).abs() > (fused_x * source_x).abs()
        side = torch.where(source_x * source_y < 0, -1.0, 1.0)  # to the metric, level edges lie on the positive side
        same_side = torch.sigmoid(2 * side * (fused_x * fused_y.sign() + 0.5))  # Sobel responses are whole numbers
        quality = torch.where(steep, quality * same_side, quality)
        weight = (weight - floor).clamp(min=0)
        kept, total = kept + (quality * weight).sum((1, 2, 3)), total + weight.sum((1, 2, 3))
    return 1 - (kept / (total + 1)).mean()
