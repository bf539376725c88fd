"""What calibration watches while the FP32 network runs: ranges, square sums, decisions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from upfusion.model import FusionNetwork
from upfusion.model.layers import ChannelAttention, RestormerBlock
from upfusion.model.margins import mask_margins, order_margins
from upfusion.model.perturbation import ChannelPerturbation, SelectiveAttention
from upfusion.runtime.calibration_file import DecisionRecord, SiteRange, SquareSum

SAMPLE = 100_000
"""Values of a site and pair that its percentile is taken of: ten lie above the 99.99th."""

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


class RangeObserver:
    """Largest magnitude and 99.99th percentile of every convolution and residual stream, by module path.

    The ConvNeXt trunk is left out: it runs in float32 in every form. ``PATH.input`` is what an output projection
    reads: a product of two maps, the largest values of a block.
    """

    def __init__(self) -> None:
        self.ranges: dict[str, SiteRange] = {}

    def watch(self, network: FusionNetwork) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Register the hooks; yield their handles."""
        for name, module in network.named_modules():
            if name.startswith("pruning.trunk"):
                continue
            if isinstance(module, nn.Conv2d | RestormerBlock | ChannelPerturbation):
                yield module.register_forward_hook(self._hook(name, of_input=False))
            if name.endswith(".project"):
                yield module.register_forward_hook(self._hook(f"{name}.input", of_input=True))

    def _hook(self, name: str, *, of_input: bool) -> Hook:
        def see(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            values = (args[0] if of_input else output).detach().flatten()
            step = -(-values.numel() // SAMPLE)
            sample = values[::step].abs()
            percentile = sample.kthvalue(max(1, int(0.9999 * sample.numel()))).values
            largest = max(float(values.max()), -float(values.min()))
            before = self.ranges.get(name, SiteRange(largest=0.0, p9999=0.0))
            self.ranges[name] = SiteRange(
                largest=max(before.largest, largest), p9999=max(before.p9999, float(percentile))
            )

        return see


class SquareSumObserver:
    """Sums of squares of queries and keys over all pixels, largest over channels, by ``PATH.query`` and ``.key``."""

    def __init__(self, target_size: tuple[int, int]) -> None:
        self.target_pixels = target_size[0] * target_size[1]
        self.image_pixels = 0
        """Pixels of the padded pair that runs next; the caller sets it."""
        self.sums: dict[str, SquareSum] = {}

    def watch(self, network: FusionNetwork) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Register the hooks; yield their handles."""
        for name, module in network.named_modules():
            if isinstance(module, ChannelAttention):
                yield module.depthwise.register_forward_hook(self._hook(3, {0: f"{name}.query", 1: f"{name}.key"}))
            elif isinstance(module, SelectiveAttention):
                yield module.query_depthwise.register_forward_hook(self._hook(1, {0: f"{name}.query"}))
                yield module.key_value_depthwise.register_forward_hook(self._hook(2, {0: f"{name}.key"}))

    def _hook(self, parts: int, names: dict[int, str]) -> Hook:
        def see(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            chunks = output.detach().chunk(parts, dim=1)
            for index, name in names.items():
                largest = float(chunks[index].square().sum((2, 3)).max())
                at_target = largest * self.target_pixels / self.image_pixels
                before = self.sums.get(name, SquareSum(largest=0.0, at_target=0.0))
                self.sums[name] = SquareSum(
                    largest=max(before.largest, largest), at_target=max(before.at_target, at_target)
                )

        return see


class OrderObserver:
    """One channel order over the pairs: its margins, and how often each channel stood at each place."""

    def __init__(self) -> None:
        self.margins: list[Tensor] = []
        self.counts: np.ndarray | None = None
        self.runs = 0

    def see(self, values: Tensor, order: Tensor) -> None:
        """Add one image's values (1, n) and the order (1, k) that they gave."""
        places = order.shape[1]
        if self.counts is None:
            self.counts = np.zeros((places, values.shape[1]), np.int64)
        self.margins.append(order_margins(values, places)[0])
        self.counts[np.arange(places), order[0].numpy()] += 1
        self.runs += 1

    def record(self) -> DecisionRecord:
        """Return what was seen. The majority order is the one that agrees in the most places over all pairs."""
        assert self.counts is not None
        margins = torch.cat(self.margins)
        # Each place its own most frequent channel could name a channel twice: an assignment cannot.
        _, majority = linear_sum_assignment(self.counts, maximize=True)
        return DecisionRecord(
            smallest_margin=float(margins.min()),
            p1_margin=float(margins.quantile(0.01)),
            agreement=tuple((self.counts[np.arange(len(majority)), majority] / self.runs).tolist()),
            majority=tuple(majority.tolist()),
        )


class MaskObserver:
    """One attention mask over the pairs: its margins, and how often each entry stayed."""

    def __init__(self) -> None:
        self.smallest: list[Tensor] = []
        self.kept: Tensor | None = None
        self.logits: Tensor | None = None
        self.per_row = 0
        self.runs = 0

    def see(self, logits: Tensor, keep: Tensor) -> None:
        """Add one image's logits and mask, (1, heads, c, c) each."""
        if self.kept is None or self.logits is None:
            self.kept = torch.zeros(keep.shape[1:])
            self.logits = torch.zeros(keep.shape[1:])
            self.per_row = int(keep[0, 0, 0].sum())
        self.smallest.append(mask_margins(logits, keep).flatten())
        self.kept += keep[0]
        self.logits += logits[0]
        self.runs += 1

    def record(self) -> DecisionRecord:
        """Return what was seen. The majority keeps in each row the entries that stayed most often."""
        assert self.kept is not None
        assert self.logits is not None
        margins = torch.cat(self.smallest)
        # Equal counts are settled by the mean logit, squashed to less than one count.
        favour = self.kept + (self.logits / self.runs).sigmoid() / 2
        majority = torch.zeros_like(favour, dtype=torch.bool)
        majority.scatter_(-1, favour.topk(self.per_row, dim=-1).indices, True)
        share = self.kept / self.runs
        agreement = torch.where(majority, share, 1 - share).mean()
        return DecisionRecord(
            smallest_margin=float(margins.min()),
            p1_margin=float(margins.quantile(0.01)),
            agreement=(float(agreement),),
            majority=tuple((~majority).flatten().nonzero().flatten().tolist()),
        )


@contextlib.contextmanager
def watching(network: FusionNetwork, *observers: RangeObserver | SquareSumObserver) -> Iterator[None]:
    """Keep the observers' hooks registered inside the block."""
    handles = [handle for observer in observers for handle in observer.watch(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
