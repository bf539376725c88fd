"""Run an artifact: numpy with ONNX Runtime or TensorRT. Never imports torch."""
