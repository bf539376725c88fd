"""Half precision that follows a calibration: which layers narrow, with which scales and biases.

``use_half_maps`` says which layers may compute in half. Here each of them is given what keeps it safe and centred:

- a power of two folded into weights where a map would leave half's range and the function allows it
  (:func:`fold_scales`, on the trained network, before any rewrite);
- float32 where a map would still leave the range (:func:`to_half`);
- a bias that makes every layer's channel means, in half, those of float32 (:func:`to_half`): weights are rounded
  once and for all, so their error is no noise that averages out over the pixels but a shift of the whole map.

The measurements run on the calibration's sample crops and on whatever form the rewrites have made: layers are found
as modules, not by the names of the trained network.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upfusion.arithmetic import LARGEST_HALF, HalfArithmetic
from upfusion.checkpoint import Checkpoint
from upfusion.export.deploy import DeployNetwork, use_half_maps
from upfusion.model import FusionNetwork
from upfusion.model.decisions import imposing
from upfusion.model.layers import ChannelAttention, GatedFeedForward, RestormerBlock
from upfusion.model.perturbation import SelectiveAttention
from upfusion.runtime.calibration_file import Calibration
from upfusion.runtime.errors import ArtifactError
from upfusion.runtime.images import prepare

HEADROOM = 8.0
"""A map stays in half if this times its largest value on the calibration's pairs still fits."""
UNSEEN_HEADROOM = 64.0
"""The same where there is no calibration and only synthetic images were seen."""

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
    """Convolutions whose bias was fitted."""
    largest: float
    """Largest value seen in a half map."""


def check_calibration(calibration: Calibration, checkpoint: Checkpoint, name: str) -> None:
    """Refuse a calibration of another network.

    Raises:
        ArtifactError: it was made from another checkpoint.
    """
    if calibration.source.sha256 != checkpoint.sha256:
        raise ArtifactError(
            f"{name} calibrates another checkpoint: {calibration.source.name} "
            f"({calibration.source.sha256[:12]}…), not {checkpoint.path.name} ({checkpoint.sha256[:12]}…)",
            f"upfusion calibrate {checkpoint.path} --data VIS IR -o {name}",
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
        samples: real crops of a calibration, or synthetic images without one.
        calibrated: whether the samples are real; if not, the ranges get more headroom and no bias is fitted.
    """
    wide_form = copy.deepcopy(deploy)
    use_half_maps(deploy)
    sites = {name: module for name, module in deploy.named_modules() if _is_half(module)}
    blocks = {name: module for name, module in deploy.named_modules() if isinstance(module, RestormerBlock)}
    seen = Observed()
    with torch.no_grad(), seen.watching(wide_form, sites, blocks):
        _, decisions = wide_form.with_decisions(*samples)
    limit = LARGEST_HALF / (HEADROOM if calibrated else UNSEEN_HEADROOM)
    wide = _keep_wide(sites, blocks, seen, limit)
    deploy.wide_streams = not wide.isdisjoint(blocks)
    narrow = {name: module for name, module in sites.items() if name not in wide}
    corrected = 0
    if calibrated:
        corrected = _centre(deploy, narrow, blocks, seen, samples, decisions)
    kept = [largest for name, largest in seen.largest.items() if name not in wide]
    return HalfReport(
        half=len(narrow),
        wide=tuple(sorted(wide)),
        corrected=corrected,
        largest=max(kept, default=0.0),
    )


class Observed:
    """Largest magnitudes and channel means of layers over one forward pass in float32."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = defaultdict(float)
        self.means: dict[str, list[Tensor]] = defaultdict(list)
        """Channel means (C,) of each call, in order: a layer that two streams share is called twice."""

    def watching(
        self, network: nn.Module, sites: Mapping[str, nn.Module], blocks: Mapping[str, nn.Module]
    ) -> ExitStack:
        """Return a context in which a forward pass of ``network`` is seen at the named modules."""
        stack = ExitStack()
        for name in (*sites, *blocks):
            handle = network.get_submodule(name).register_forward_hook(self._hook(name))
            stack.callback(handle.remove)
        return stack

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def see(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            for values in (args[0], output):
                extremes = torch.stack(values.aminmax()).abs()
                self.largest[name] = max(self.largest[name], float(extremes.max()))
            self.means[name].append(output.double().mean((0, 2, 3)))

        return see


def _is_half(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.weight.dtype == torch.float16


def _keep_wide(
    sites: Mapping[str, nn.Module], blocks: Mapping[str, nn.Module], seen: Observed, limit: float
) -> set[str]:
    """Return the layers whose values pass the limit, after turning them to float32 with casts around them."""
    wide = {name for name in (*sites, *blocks) if not seen.largest[name] <= limit}
    if wide:
        for name, conv in sites.items():
            if name in wide:
                conv.float()
            conv.register_forward_pre_hook(_to_weight_type)
        for name in wide & blocks.keys():
            blocks[name].register_forward_pre_hook(_to_float)
    return wide


def _to_weight_type(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (args[0].to(weight.dtype), *args[1:])


def _to_float(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].float(), *args[1:])


def _centre(
    deploy: DeployNetwork,
    sites: Mapping[str, nn.Module],
    blocks: Mapping[str, nn.Module],
    seen: Observed,
    samples: Samples,
    decisions: Mapping[str, Tensor],
) -> int:
    """Give each half convolution the bias that makes its channel means those of float32; return how many got one.

    One pass in emulated half, layer after layer: each layer's inputs are corrected already. A layer that two streams
    share is centred on the first. After a residual block
    the whole stream is centred, by the bias of the last convolution that wrote to it.
    """
    fitted: set[str] = set()
    current: list[nn.Conv2d] = []

    def at_convolution(name: str) -> Callable[..., Tensor | None]:
        def centre(module: nn.Conv2d, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            current[:] = [module]
            if name in fitted:
                return None
            fitted.add(name)
            return _shifted(module, output, seen.means[name][0])

        return centre

    def at_block(name: str) -> Callable[..., Tensor | None]:
        def centre(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if name in fitted or not current or current[0].out_channels != output.shape[1]:
                return None
            fitted.add(name)
            return _shifted(current[0], output, seen.means[name][0])

        return centre

    with ExitStack() as stack:
        for name, module in sites.items():
            stack.callback(module.register_forward_hook(at_convolution(name)).remove)
        for name, block in blocks.items():
            stack.callback(block.register_forward_hook(at_block(name)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(imposing(deploy.network, decisions))
        stack.enter_context(HalfArithmetic())
        deploy(*samples)
    return len(fitted & sites.keys())


def _shifted(conv: nn.Conv2d, output: Tensor, wanted: Tensor) -> Tensor:
    """Move the convolution's bias so that ``output`` has the wanted channel means; return the moved output."""
    shift = (wanted - output.double().mean((0, 2, 3))).float()
    before = torch.zeros_like(shift) if conv.bias is None else conv.bias.float()
    conv.bias = nn.Parameter((before + shift).to(conv.weight.dtype), requires_grad=False)
    return (output.float() + shift[:, None, None]).to(output.dtype)
