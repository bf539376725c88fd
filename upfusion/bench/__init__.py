"""How fast artifacts are: latency with its parts, throughput, energy, and the distance to the least possible time.

Needs no torch for ONNX files and engines. ``measure.py`` says what is timed and how.
"""
