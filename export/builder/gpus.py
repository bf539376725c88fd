"""Which NVIDIA GPUs this machine has, asked of the driver's management library."""

from __future__ import annotations

import csv
import logging
import shutil
import subprocess
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as NVML describes it."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    driver: str

    @property
    def target(self) -> str:
        """``sm89`` for compute capability 8.9."""
        major, minor = self.compute_capability
        return f"sm{major}{minor}"


def installed_gpus() -> list[Gpu]:
    """Return the GPUs in the driver's order; an empty list where there is no driver or no GPU.

    cuda-core asks the library itself; where it cannot, the driver's own ``nvidia-smi`` is asked.
    """
    try:
        from cuda.core import system
    except ImportError:
        return _from_nvidia_smi()
    try:
        driver = ".".join(map(str, system.get_kernel_mode_driver_version()))
        return [
            Gpu(
                name=device.name,
                compute_capability=tuple(device.cuda_compute_capability),
                memory_bytes=int(device.memory_info.total),
                driver=driver,
            )
            for device in system.Device.get_all_devices()
        ]
    except Exception as error:  # its errors share no public base: no driver, no library, no permission
        log.debug("NVML does not answer: %s", error)
        return _from_nvidia_smi()


def _from_nvidia_smi() -> list[Gpu]:
    """Return what ``nvidia-smi`` lists."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = "name,compute_cap,memory.total,driver_version"
    try:
        listing = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
        return gpus_from_listing(listing)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.debug("nvidia-smi does not answer: %s", error)
        return []


def gpus_from_listing(listing: str) -> list[Gpu]:
    """Read lines ``name, 8.9, 24564, 580.65.06`` (memory in MiB).

    Raises:
        ValueError: a line of another form.
    """
    found = []
    for name, capability, mebibytes, driver in csv.reader(listing.splitlines(), skipinitialspace=True):
        major, minor = map(int, capability.split("."))
        found.append(
            Gpu(name=name, compute_capability=(major, minor), memory_bytes=int(mebibytes) << 20, driver=driver)
        )
    return found
