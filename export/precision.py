"""Half precision that follows a calibration: which layers narrow, with which scales and biases.

``use_half_maps`` says which layers may compute in half. Here each of them is given what keeps it safe and centred:

- a power of two folded into weights where a map would leave half's range and the function allows it
  (:func:`fold_scales`, on the trained network, before any rewrite);
- float32 where a map would still leave the range (:func:`to_half`);
- weights rounded so that their errors cancel for real inputs (``upfusion.export.rounding``), and a bias that makes
  every layer's channel means, in half, those of float32 (:func:`to_half`): weights are rounded once and for all, so
  their error is no noise that averages out over the pixels but a shift of the whole map.

The measurements run on the calibration's sample crops, as they are and recoloured, and on whatever form the rewrites
have made: layers are found as modules, not by the names of the trained network.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfusion.arithmetic import LARGEST_HALF, HalfArithmetic, not_emulated
from upfusion.checkpoint import Checkpoint
from upfusion.export.deploy import DeployNetwork, FixedOrderPerturbation, half_convolutions, use_half_maps
from upfusion.export.rewrites.attend_channels_last import ChannelsLastAttention
from upfusion.export.rewrites.channels_last import ChannelsLastBlock, ChannelsLastNorm
from upfusion.export.rounding import round_conv
from upfusion.model import FusionNetwork
from upfusion.model.decisions import imposing
from upfusion.model.layers import ChannelAttention, GatedFeedForward, RestormerBlock
from upfusion.model.perturbation import SelectiveAttention
from upfusion.runtime.calibration_file import Calibration
from upfusion.runtime.errors import ArtifactError
from upfusion.runtime.images import prepare
from upfusion.text import TextFeatures

HEADROOM = 8.0
"""A map stays in half if this times its largest value on the calibration's pairs still fits."""
UNSEEN_HEADROOM = 64.0
"""The same where there is no calibration and only synthetic images were seen."""

BLOCKS = (RestormerBlock, ChannelsLastBlock, FixedOrderPerturbation)
"""Modules whose result is a residual stream: its last summand's convolution centres it."""

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]
Samples = tuple[Tensor, Tensor]
"""Inputs of the deploy form, (B, 3, H, W) and (B, 1, H, W)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfReport:
    """What became of the layers."""

    half: int
    """Convolutions in half."""
    wide: tuple[str, ...]
    """Convolutions and residual blocks that stay float32 because half could not hold their values."""
    corrected: int
    """Convolutions whose weights and bias were fitted."""
    largest: float
    """Largest value seen in a half map."""


def check_calibration(calibration: Calibration, checkpoint: Checkpoint, text: TextFeatures, name: str) -> None:
    """Refuse a calibration of another network or another prompt.

    Raises:
        ArtifactError: it was made from another checkpoint, or with another text feature.
    """
    if calibration.source.sha256 != checkpoint.sha256:
        raise ArtifactError(
            f"{name} calibrates another checkpoint: {calibration.source.name} "
            f"({calibration.source.sha256[:12]}…), not {checkpoint.path.name} ({checkpoint.sha256[:12]}…)",
            f"upfusion calibrate {checkpoint.path} --data VIS IR -o {name}",
        )
    if calibration.text_sha256 != text.sha256:
        raise ArtifactError(
            f"{name} was made with another text feature than {text.prompt!r:.60} of {text.encoder}: another prompt "
            "makes other decisions",
            f"upfusion calibrate {checkpoint.path} --text TEXT.npz --data VIS IR -o {name}, with the export's text",
        )


@torch.no_grad()
def fold_scales(network: FusionNetwork, calibration: Calibration) -> tuple[str, ...]:
    """Scale rows and columns by powers of two where a map would leave half's range; return a sentence for each.

    Exact in float32, and the function does not change: queries and keys are divided by their norms, and what values
    and the feed-forward's second half lose, the projection behind them gains. The network is changed in place; to be
    called on a copy, before rewrites.
    """
    done = []
    for path, module in network.named_modules():

        def excess(*sites: str, path: str = path) -> int:
            """Return the power of two by which the largest of these sites leaves the range, 0 if none does."""
            largest = max(calibration.ranges[f"{path}.{site}"].largest for site in sites)
            return max(0, math.ceil(math.log2(max(largest * HEADROOM / LARGEST_HALF, 1e-30))))

        if isinstance(module, ChannelAttention):
            if power := excess("to_qkv", "depthwise"):
                module.to_qkv.weight.mul_(2.0**-power)
                module.project.weight.mul_(2.0**power)
                done.append(f"{path}: queries, keys and values by 2^-{power}")
        elif isinstance(module, SelectiveAttention):
            if power := excess("to_query", "query_depthwise"):
                module.to_query.weight.mul_(2.0**-power)
                done.append(f"{path}: queries by 2^-{power}")
            if power := excess("to_key_value", "key_value_depthwise"):
                module.to_key_value.weight.mul_(2.0**-power)
                module.project.weight.mul_(2.0**power)
                done.append(f"{path}: keys and values by 2^-{power}")
        elif isinstance(module, GatedFeedForward) and (power := excess("expand", "depthwise", "project.input")):
            # The gate goes through GELU, which no scale passes; only the values can be scaled.
            hidden = module.project.in_channels
            module.expand.weight[hidden:].mul_(2.0**-power)
            module.project.weight.mul_(2.0**power)
            done.append(f"{path}: values of the feed-forward by 2^-{power}")
    return tuple(done)


def samples_of(calibration: Calibration) -> Samples:
    """Return the calibration's crops as one batch for the deploy form; crops of a rarer size are left out."""
    by_size: dict[tuple[int, ...], list[Samples]] = defaultdict(list)
    for sample in calibration.samples:
        visible, infrared = map(torch.from_numpy, prepare(*sample.images()))
        by_size[tuple(visible.shape)].append((visible, infrared))
    batch = max(by_size.values(), key=len)
    return torch.cat([visible for visible, _ in batch]), torch.cat([infrared for _, infrared in batch])


def to_half(deploy: DeployNetwork, samples: Samples, *, calibrated: bool) -> HalfReport:
    """Turn the deploy form to half where that is safe, and centre it on the samples.

    Args:
        deploy: any form that ``use_half_maps`` takes, in float32; changed in place.
        samples: crops of a calibration (real, recoloured), or synthetic images without one.
        calibrated: whether the samples are of real pairs; if not, the ranges get more headroom, weights are rounded to
            nearest and no bias is fitted.
    """
    sites = half_convolutions(deploy)
    blocks = {name: module for name, module in deploy.named_modules() if isinstance(module, BLOCKS)}
    seen = Observed()
    with torch.no_grad(), seen.watching(sites, blocks):
        _, decisions = deploy.with_decisions(*samples)
    exact = {name: _exact(conv) for name, conv in sites.items()}
    limit = LARGEST_HALF / (HEADROOM if calibrated else UNSEEN_HEADROOM)
    wide = {name for name in (*sites, *blocks) if not seen.largest[name] <= limit}
    use_half_maps(deploy, [blocks[name] for name in wide & blocks.keys()])
    _keep_wide(sites, blocks, wide)
    narrow = {name: module for name, module in sites.items() if name not in wide}
    if calibrated:
        _fit(deploy, narrow, exact, blocks, seen, samples, decisions)
    kept = [largest for name, largest in seen.largest.items() if name not in wide]
    return HalfReport(
        half=len(narrow),
        wide=tuple(sorted(wide)),
        corrected=len(narrow) if calibrated else 0,
        largest=max(kept, default=0.0),
    )


class Observed:
    """Largest magnitudes and channel means of layers over one forward pass in float32."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = defaultdict(float)
        self.means: dict[str, Tensor] = {}
        """Channel means (C,) of the first call: two streams share a layer in some forms."""

    @contextmanager
    def watching(self, sites: Mapping[str, nn.Module], blocks: Mapping[str, nn.Module]) -> Iterator[None]:
        """See a forward pass inside the block: what the sites and blocks read and give, and the blocks' streams."""
        handles = []
        for name, module in (*sites.items(), *blocks.items()):
            handles.append(module.register_forward_hook(self._range(name)))
        for name, site in sites.items():
            handles.append(site.register_forward_hook(self._mean(name)))
        for name, block in blocks.items():
            handles.append(block.norm_feed_forward.register_forward_hook(self._stream_mean(_stream(name))))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _range(self, name: str) -> Hook:
        def see(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            for values in (*args, output):
                # The fastest way that copies no strided map; vector_norm(inf) takes four times as long.
                self.largest[name] = max(self.largest[name], float(values.amax()), -float(values.amin()))

        return see

    def _mean(self, name: str) -> Hook:
        def see(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.means.setdefault(name, channel_means(output))

        return see

    def _stream_mean(self, name: str) -> Hook:
        def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.means.setdefault(name, stream_means(module, args[0]))

        return see


def channel_means(x: Tensor) -> Tensor:
    """Return the mean of each channel of (B, C, H, W) over the batch and all pixels, (C,), float64."""
    return x.float().mean((2, 3)).double().mean(0)


def stream_means(norm: nn.Module, stream: Tensor) -> Tensor:
    """Return the channel means of the stream that a norm reads, in the layout that the norm takes."""
    return channel_means(stream.permute(0, 3, 1, 2) if isinstance(norm, ChannelsLastNorm) else stream)


def mean_response(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Return the channel means of a convolution's result, (outputs,), float64, without making the result.

    Args:
        x: (B, inputs, H, W), padded with zeros to keep its size.
        weight: (outputs, inputs / groups, k, k), k 1 or 3.
        bias: (outputs,).
        groups: as the convolution has them.
    """
    sums = x.float()
    if weight.shape[-1] == 1:
        sums = sums.sum((2, 3))
    else:
        for axis in (3, 2):  # (B, inputs, H, W) to (B, inputs, H, 3) to (B, inputs, 3, 3): columns, then rows
            total, first, last = sums.sum(axis), sums.select(axis, 0), sums.select(axis, -1)
            sums = torch.stack([total - last, total, total - first], dim=axis)  # what each tap meets
    means = sums.double().mean(0) / (x.shape[2] * x.shape[3])
    responses = weight.double().reshape(groups, weight.shape[0] // groups, -1) @ means.reshape(groups, -1, 1)
    return responses.flatten() + bias.double()


def _keep_wide(sites: Mapping[str, nn.Module], blocks: Mapping[str, nn.Module], wide: Set[str]) -> None:
    """Turn the layers of these names back to float32, with casts around them."""
    if wide:
        for name, conv in sites.items():
            if name in wide:
                conv.float()
            conv.register_forward_pre_hook(_to_weight_type)
        for name in wide & blocks.keys():
            blocks[name].register_forward_pre_hook(_to_float)


def _to_weight_type(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (args[0].to(weight.dtype), *args[1:])


def _to_float(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.float() for arg in args)


def _fit(
    deploy: DeployNetwork,
    sites: Mapping[str, nn.Conv2d],
    exact: Mapping[str, tuple[Tensor, Tensor]],
    blocks: Mapping[str, nn.Module],
    seen: Observed,
    samples: Samples,
    decisions: Mapping[str, Tensor],
) -> None:
    """Round each half convolution's weights by its inputs, with the bias that makes its channel means those of float32.

    ``exact`` holds weights and biases before they were rounded. One pass in emulated half, layer after layer: each
    layer's inputs are what the rounded layers before it make, and centred already. A convolution that two streams
    share is fitted to the first. The last convolution of a residual block also takes over what the stream it is added
    to is off by: what attention matrices and sums add has no bias of its own.
    """
    debts: dict[nn.Module, Tensor] = {}

    def at_norm(name: str, last: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def measure(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            debts[last] = seen.means[name] - stream_means(module, args[0])

        return measure

    def fitted(name: str, conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            """Fit to the result before it is rounded: a shift below the rounding step would get lost after it."""
            if name in wanted:
                weight, bias = exact[name]
                with not_emulated():  # a step for each input of a layer, on wide numbers only
                    shift = wanted.pop(name) - mean_response(x, weight, bias, conv.groups) + debts.get(conv, 0.0)
                    round_conv(conv, weight, bias + shift.float(), x)
            assert conv.bias is not None
            wide = F.conv2d(x.float(), conv.weight.float(), conv.bias.float(), padding=conv.padding, groups=conv.groups)
            return wide.to(x.dtype)

        return forward

    wanted = {name: seen.means[name] for name in sites}
    _centre_values(deploy, sites, wanted)
    with ExitStack() as stack:
        for name, conv in sites.items():
            conv.forward = fitted(name, conv)  # type: ignore[method-assign]
            stack.callback(delattr, conv, "forward")
        for name, block in blocks.items():
            last = [module for module in block.feed_forward.modules() if isinstance(module, nn.Conv2d)][-1]
            stack.callback(block.norm_feed_forward.register_forward_pre_hook(at_norm(_stream(name), last)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(imposing(deploy.network, decisions))
        stack.enter_context(HalfArithmetic())
        deploy(*samples)


def _centre_values(deploy: DeployNetwork, sites: Mapping[str, nn.Conv2d], wanted: dict[str, Tensor]) -> None:
    """Want no means of the values where maps are largest, and have the attentions add what they make of them.

    The matrix that values are multiplied with is another one in each image, and no calibration can round it: its
    rounding error times the values' mean is a shift of the whole map, which is gone when that mean is. At smaller maps
    it was seen to change nothing.
    """
    names = {conv: name for name, conv in sites.items()}
    for attention in deploy.modules():
        if isinstance(attention, ChannelsLastAttention) and (name := names.get(attention.value_depthwise)):
            attention.value_means = wanted[name][None].float()
            wanted[name] = torch.zeros_like(wanted[name])


def _exact(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return copies of a convolution's weight and bias, float32."""
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
    return conv.weight.detach().clone(), bias


def _stream(block: str) -> str:
    """Return the name of a block's stream between attention and feed-forward."""
    return f"{block}.norm_feed_forward"
