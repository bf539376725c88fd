"""NVML behind a stand-in: what it says, what it refuses to say, and which of several GPUs is meant."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from upfusion.bench.gpu_meter import GpuMeter
from upfusion.runtime.errors import DeviceError, MissingDependencyError


class NVMLError(Exception):
    pass


class Nvml(SimpleNamespace):
    """An H200 under load."""

    def __init__(self, gpus: int = 1, **changes: Any) -> None:
        def answers(value: Any) -> Any:
            return lambda *arguments: value

        super().__init__(
            NVMLError=NVMLError,
            NVML_CLOCK_SM=1,
            NVML_CLOCK_MEM=2,
            NVML_TEMPERATURE_GPU=0,
            nvmlClocksEventReasonGpuIdle=1,
            nvmlClocksEventReasonSwPowerCap=4,
            nvmlClocksEventReasonAll=5,
            nvmlInit=answers(None),
            nvmlSystemGetDriverVersion=answers("580.65"),
            nvmlDeviceGetCount=answers(gpus),
            nvmlDeviceGetHandleByIndex=answers("gpu"),
            nvmlDeviceGetName=answers(b"NVIDIA H200"),
            nvmlDeviceGetMemoryInfo=answers(SimpleNamespace(used=3 << 30, total=141 << 30)),
            nvmlDeviceGetPowerUsage=answers(512_300),
            nvmlDeviceGetEnforcedPowerLimit=answers(700_000),
            nvmlDeviceGetCurrentClocksEventReasons=answers(4),
            nvmlDeviceGetClockInfo=lambda gpu, clock: {1: 1980, 2: 3201}[clock],
            nvmlDeviceGetTemperature=answers(55),
            nvmlDeviceGetTotalEnergyConsumption=answers(12_500),
        )
        self.__dict__.update(changes)


def refuses(*arguments: Any) -> Any:
    raise NVMLError("Not Supported")


def test_what_it_says() -> None:
    meter = GpuMeter(library=Nvml())
    assert (meter.name, meter.driver) == ("NVIDIA H200", "580.65")
    state = meter.state()
    assert (state.sm_clock_mhz, state.memory_clock_mhz, state.temperature_c) == (1980, 3201, 55)
    assert (state.power_w, state.power_limit_w, state.used_bytes) == (512.3, 700.0, 3 << 30)
    assert state.slowed_by == ("SwPowerCap",)
    assert meter.joules() == 12.5


def test_what_a_gpu_does_not_tell_is_none() -> None:
    meter = GpuMeter(
        library=Nvml(
            nvmlDeviceGetTotalEnergyConsumption=refuses,
            nvmlDeviceGetPowerUsage=refuses,
            nvmlDeviceGetCurrentClocksEventReasons=refuses,
        )
    )
    assert meter.joules() is None
    assert (meter.state().power_w, meter.state().slowed_by) == (None, None)
    assert meter.state().temperature_c == 55


def test_no_driver() -> None:
    with pytest.raises(DeviceError, match="NVML shows no GPU: Not Supported"):
        GpuMeter(library=Nvml(nvmlInit=refuses))


def test_several_gpus_need_the_place_on_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    core = SimpleNamespace(Device=lambda number: SimpleNamespace(pci_bus_id=f"0000:0{number}:00.0"))
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    GpuMeter(3, Nvml(gpus=4, nvmlDeviceGetHandleByPciBusId=asked.append))
    assert asked == ["0000:03:00.0"]
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(DeviceError, match="nothing tells which one runs"):
        GpuMeter(3, Nvml(gpus=4))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match="nvidia-ml-py") as caught:
        GpuMeter()
    assert "upfusion[bench]" in caught.value.hint
