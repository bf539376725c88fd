"""From a trained network to a verified ONNX graph, and from the graph to a TensorRT engine."""
