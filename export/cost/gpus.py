"""Public datasheet figures of GPUs, without sparsity, at boost clock."""

from __future__ import annotations

from dataclasses import dataclass

from upfusion.runtime.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What the roofline needs to know of a GPU."""

    name: str
    half_tflops: float
    """Dense FP16 products summed in FP32 on tensor cores, 10^12 operations a second."""
    single_tflops: float
    """FP32 outside tensor cores."""
    bandwidth_gbps: float
    """Device memory, 10^9 bytes a second."""
    memory_gib: float


GPUS: tuple[Gpu, ...] = (
    Gpu(name="H200", half_tflops=989.4, single_tflops=66.9, bandwidth_gbps=4800, memory_gib=141),
    Gpu(name="H100", half_tflops=989.4, single_tflops=66.9, bandwidth_gbps=3350, memory_gib=80),
    Gpu(name="A100", half_tflops=312, single_tflops=19.5, bandwidth_gbps=2039, memory_gib=80),
    Gpu(name="L40S", half_tflops=362, single_tflops=91.6, bandwidth_gbps=864, memory_gib=48),
    Gpu(name="L4", half_tflops=121, single_tflops=30.3, bandwidth_gbps=300, memory_gib=24),
    Gpu(name="A10", half_tflops=125, single_tflops=31.2, bandwidth_gbps=600, memory_gib=24),
    Gpu(name="T4", half_tflops=65, single_tflops=8.1, bandwidth_gbps=320, memory_gib=16),
    Gpu(name="RTX 5090", half_tflops=209.5, single_tflops=104.8, bandwidth_gbps=1792, memory_gib=32),
    Gpu(name="RTX 4090", half_tflops=165.2, single_tflops=82.6, bandwidth_gbps=1008, memory_gib=24),
    Gpu(name="RTX 3090", half_tflops=71, single_tflops=35.6, bandwidth_gbps=936, memory_gib=24),
    Gpu(name="Orin AGX", half_tflops=42.5, single_tflops=5.3, bandwidth_gbps=204.8, memory_gib=64),
)
"""SXM boards of H200, H100 and A100 (80 GB); Jetson AGX Orin 64 GB in its largest power mode."""


def gpu_named(name: str) -> Gpu:
    """Return a GPU by its name, whatever the case and the spaces.

    Raises:
        InputError: not in the table.
    """
    wanted = _plain(name)
    for gpu in GPUS:
        if _plain(gpu.name) == wanted:
            return gpu
    raise InputError(f"no figures for a GPU called {name!r}", f"known are: {', '.join(gpu.name for gpu in GPUS)}")


def _plain(name: str) -> str:
    return "".join(name.lower().split())
