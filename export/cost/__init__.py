"""What an ONNX graph costs to run: operations, bytes, live memory, and the least time on a named GPU."""

from upfusion.export.cost.gpus import GPUS, Gpu, gpu_named
from upfusion.export.cost.graph import read_graph
from upfusion.export.cost.model import BlockCost, GraphCost, cost_of, rooflines_of

__all__ = ["GPUS", "BlockCost", "Gpu", "GraphCost", "cost_of", "gpu_named", "read_graph", "rooflines_of"]
