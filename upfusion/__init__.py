"""UP-Fusion on NVIDIA GPUs: checkpoint, verified ONNX graph, FP16 engine, thin runtime.

This module imports nothing heavy, because it also runs before ``upfusion.runtime``.
"""

__version__ = "0.1.0"
