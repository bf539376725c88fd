"""Run an artifact: numpy with ONNX Runtime or TensorRT. Never imports torch.

::

    from upfusion.runtime import load

    with load("fusion.onnx") as fuse:
        fused = fuse(visible, infrared)   # (H, W, 3) and (H, W) uint8 -> uint8

The names below are imported when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upfusion.runtime.fuser import Fuser as Fuser
    from upfusion.runtime.fuser import load as load
    from upfusion.runtime.held_ranking import HeldRanking as HeldRanking
    from upfusion.runtime.held_ranking import load_held_ranking as load_held_ranking
    from upfusion.runtime.images import read_gray as read_gray
    from upfusion.runtime.images import read_image as read_image
    from upfusion.runtime.images import write_image as write_image
    from upfusion.runtime.pairs import Pair as Pair
    from upfusion.runtime.pairs import find_pairs as find_pairs
    from upfusion.runtime.pairs import read_pair as read_pair

_HOMES = {
    "Fuser": "fuser",
    "HeldRanking": "held_ranking",
    "Pair": "pairs",
    "find_pairs": "pairs",
    "load": "fuser",
    "load_held_ranking": "held_ranking",
    "read_gray": "images",
    "read_image": "images",
    "read_pair": "pairs",
    "write_image": "images",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(_HOMES)
