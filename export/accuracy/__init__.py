"""How far a half-precision graph is from the FP32 network: arithmetic and decisions apart, and both together."""
