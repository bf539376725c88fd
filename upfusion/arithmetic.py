"""Arithmetic of a GPU, emulated on a CPU: half precision with wide sums, and TF32 convolutions.

Inside ``with HalfArithmetic():`` every operation on half tensors computes in float32 and rounds its result to half
once, as a GPU does that stores half and accumulates in float32. Inside ``with Tf32Convolutions():`` the operands of
every dense convolution lose all but ten bits of mantissa, which is what PyTorch does by default on a GPU with TF32.

Neither changes an operation on other types. PyTorch's own half kernels on a CPU are no substitute: which sums they
keep in float32 depends on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

LARGEST_HALF = 65504.0

_aten = torch.ops.aten

# These move values and compute nothing, so they are exact in half.
_EXACT = {
    _aten._to_copy,
    _aten.arange,
    _aten.cat,
    _aten.clone,
    _aten.constant_pad_nd,
    _aten.copy_,
    _aten.detach,
    _aten.empty_like,
    _aten.gather,
    _aten.gelu_backward,
    _aten.index_select,
    _aten.pixel_shuffle,
    _aten.pixel_unshuffle,
    _aten._reshape_alias,
    _aten._unsafe_view,
}


class HalfArithmetic(TorchDispatchMode):
    """Compute on half tensors in float32 and round each result once.

    ``on_result(values)`` sees each float32 result just before it is rounded, for counts of what half cannot hold.
    """

    def __init__(self, on_result: Callable[[Tensor], None] | None = None) -> None:
        super().__init__()
        self.on_result = on_result

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in _leaves((args, kwargs)) if leaf.is_floating_point()]
        halves = [tensor for tensor in tensors if tensor.dtype == torch.float16]
        if not halves or func.is_view or func.overloadpacket in _EXACT:
            return func(*args, **kwargs)
        wide = func(*tree_map(_widened, args), **tree_map(_widened, dict(kwargs)))
        # A wider operand with dimensions makes the result wide, as in PyTorch's own type promotion.
        if any(tensor.dtype != torch.float16 and tensor.dim() for tensor in tensors):
            return wide
        return tree_map(self._rounded, wide)

    def _rounded(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if self.on_result is not None:
            self.on_result(value)
        return value.half()


class Tf32Convolutions(TorchDispatchMode):
    """Round both operands of every dense convolution to TF32, as PyTorch's default on a GPU; the rest stays float32.

    Depthwise convolutions, linear layers and matrix products keep float32: PyTorch's defaults.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.overloadpacket is _aten.convolution and args[8] == 1 and args[0].dtype == torch.float32:
            args = (to_tf32(args[0]), to_tf32(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def not_emulated() -> AbstractContextManager[Any]:
    """Return a context in which operations compute as they are written, also inside an emulation; and much faster."""
    context: AbstractContextManager[Any] = _disable_current_modes()
    return context


def to_tf32(x: Tensor) -> Tensor:
    """Round float32 values to a mantissa of ten bits, to nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    odd = (bits >> 13) & 1
    return ((bits + 0xFFF + odd) & ~0x1FFF).view(torch.float32)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _leaves(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, tree)
    return found
