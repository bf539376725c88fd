"""Clocks, temperature, memory and energy of one GPU, as the driver's management library (NVML) tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upfusion.runtime.errors import DeviceError, MissingDependencyError


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """One moment; None where the GPU does not tell."""

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    power_limit_w: float | None
    slowed_by: tuple[str, ...] | None
    """Why the clocks are not at their highest, in NVML's words."""
    used_bytes: int | None
    total_bytes: int | None


class GpuMeter:
    """Reads one GPU. The library stays loaded until the process ends."""

    def __init__(self, device_id: int = 0, library: Any = None) -> None:
        """Find the GPU that CUDA calls ``device_id``; ``library`` stands in for ``pynvml`` in tests.

        Raises:
            MissingDependencyError: nvidia-ml-py is not installed.
            DeviceError: no driver, or several GPUs and nothing that tells which is which.
        """
        self._nvml = library or _library()
        try:
            self._nvml.nvmlInit()
            self._handle = self._found(device_id)
            self.name = _text(self._nvml.nvmlDeviceGetName(self._handle))
            self.driver = _text(self._nvml.nvmlSystemGetDriverVersion())
        except self._nvml.NVMLError as error:
            raise DeviceError(f"NVML shows no GPU: {error}", "upfusion doctor says what it sees") from error

    def state(self) -> GpuState:
        """Return clocks, temperature, power and memory now."""
        nvml, gpu = self._nvml, self._handle
        memory = self._asked(nvml.nvmlDeviceGetMemoryInfo, gpu)
        power = self._asked(nvml.nvmlDeviceGetPowerUsage, gpu)
        limit = self._asked(nvml.nvmlDeviceGetEnforcedPowerLimit, gpu)
        reasons = self._asked(nvml.nvmlDeviceGetCurrentClocksEventReasons, gpu)
        return GpuState(
            sm_clock_mhz=self._asked(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._asked(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_MEM),
            temperature_c=self._asked(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power is None else power / 1e3,
            power_limit_w=None if limit is None else limit / 1e3,
            slowed_by=None if reasons is None else self._named(reasons),
            used_bytes=None if memory is None else int(memory.used),
            total_bytes=None if memory is None else int(memory.total),
        )

    def joules(self) -> float | None:
        """Return the energy that the whole board has used since the driver was loaded; None where it has no counter.

        The counter moves in steps of some tens of milliseconds: take differences over a second and more.
        """
        millijoules = self._asked(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return None if millijoules is None else millijoules / 1e3

    def _found(self, device_id: int) -> Any:
        """Return NVML's handle of CUDA's device: by its place on the bus, since the two count differently."""
        if self._nvml.nvmlDeviceGetCount() == 1:
            return self._nvml.nvmlDeviceGetHandleByIndex(0)
        try:
            from cuda.core import Device

            return self._nvml.nvmlDeviceGetHandleByPciBusId(Device(device_id).pci_bus_id)
        except ImportError as error:
            raise DeviceError(
                "there are several GPUs, and without cuda-core nothing tells which one runs", "pip install cuda-core"
            ) from error

    def _asked(self, question: Any, *arguments: Any) -> Any:
        """Return NVML's answer, None where this GPU has none."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None

    def _named(self, reasons: int) -> tuple[str, ...]:
        """Return the reasons of a bit mask by name."""
        prefix = "nvmlClocksEventReason"
        return tuple(
            name.removeprefix(prefix)
            for name in sorted(dir(self._nvml))
            if name.startswith(prefix)
            and isinstance(bit := getattr(self._nvml, name), int)
            and bit.bit_count() == 1
            and reasons & bit
        )


def _library() -> Any:
    """Return the module of nvidia-ml-py."""
    try:
        import pynvml
    except ImportError as error:
        raise MissingDependencyError(
            f"energy and clocks of the GPU need nvidia-ml-py: {error}", "pip install 'upfusion[bench]'"
        ) from error
    return pynvml


def _text(value: str | bytes) -> str:
    """Return what older versions of the library give as bytes."""
    return value.decode() if isinstance(value, bytes) else value
