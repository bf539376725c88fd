"""Measurements that write their figures, with the machine and the command, to ``benchmarks/results``."""
