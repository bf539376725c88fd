"""The machine and the libraries that a figure was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    "numpy",
    "scipy",
    "opencv-python-headless",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "cuda-core",
    "cuda-bindings",
)
"""Distributions whose version may change a figure."""

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
"""Environment variables that libraries obey without being told."""

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def machine() -> dict[str, object]:
    """Return processor, cores, clock, memory and system; what the system does not tell is None."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_mhz": cpu_mhz(),
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else None,
        "memory_bytes": _memory_bytes(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "environment": {name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Return the version of each of :data:`LIBRARIES` that is installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Return the processor's model name."""
    names = _cpu_lines("model name")
    return names[0] if names else platform.processor() or platform.machine()


def cpu_mhz() -> float | None:
    """Return the mean clock of all cores at this moment."""
    clocks = [float(value) for value in _cpu_lines("cpu MHz")]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def resident_bytes(which: str = "VmRSS") -> int | None:
    """Return the process's resident memory, or with ``VmHWM`` the most there has been."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{which}:"):
                return int(line.split()[1]) * 1024
    return None


def _cpu_lines(key: str) -> list[str]:
    """Return the values of a key of ``/proc/cpuinfo``, one for each core; none on other systems."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return []
    lines = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    return [value.strip() for name, value in lines if name.strip() == key]


def _memory_bytes() -> int | None:
    """Return the machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
