"""The UP-Fusion network in PyTorch. Knows libraries and ``upfusion.config`` only."""

from upfusion.model.network import FusionNetwork

__all__ = ["FusionNetwork"]
