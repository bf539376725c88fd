"""Training: recipes as data, deterministic crops, one loop for CPU and GPUs, resume that loses nothing.

The order of the steps is fixed by the seed alone: crop k of a run is a pure function of (seed, k), and every source
of noise in step s is seeded by (seed, s). A run that was killed and resumed therefore equals one that was not, and
N processes with batch b see what one process with batch N * b sees.
"""
