"""Which library builds: every case of libraries, GPUs and options."""

from __future__ import annotations

import pytest

from upfusion.export.builder.choice import choose_builder
from upfusion.export.builder.gpus import Gpu
from upfusion.export.builder.options import BuildOptions
from upfusion.runtime.errors import DeviceError, InputError, MissingDependencyError

ADA = Gpu(name="GeForce RTX 4090", compute_capability=(8, 9), memory_bytes=24 << 30, driver="580.65.06")


def test_on_a_gpu_tensorrt_is_preferred() -> None:
    choice = choose_builder(BuildOptions(), [ADA], lambda name: True)
    assert choice.builder == "tensorrt"
    assert "GeForce RTX 4090" in choice.reason


def test_without_a_gpu_rtx_builds_and_says_why() -> None:
    choice = choose_builder(BuildOptions(), [], lambda name: True)
    assert choice.builder == "tensorrt-rtx"
    assert "there is none here" in choice.reason


def test_another_target_than_the_gpu_here_goes_to_rtx() -> None:
    choice = choose_builder(BuildOptions(targets=("sm86",)), [ADA], lambda name: True)
    assert choice.builder == "tensorrt-rtx"
    assert "sm89" in choice.reason


def test_the_gpus_own_target_stays_with_tensorrt() -> None:
    assert choose_builder(BuildOptions(targets=("sm89",)), [ADA], lambda name: True).builder == "tensorrt"


def test_tensorrt_is_not_installed() -> None:
    choice = choose_builder(BuildOptions(), [ADA], lambda name: name == "tensorrt-rtx")
    assert choice.builder == "tensorrt-rtx"
    assert "tensorrt is not installed" in choice.reason


def test_nothing_is_usable() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        choose_builder(BuildOptions(), [], lambda name: name == "tensorrt")
    assert "there is none here" in caught.value.problem
    assert "tensorrt_rtx is not installed" in caught.value.problem
    assert 'pip install "upfusion[rtx]"' in caught.value.hint


def test_a_named_builder_never_falls_back() -> None:
    with pytest.raises(DeviceError):
        choose_builder(BuildOptions(builder="tensorrt"), [], lambda name: True)
    with pytest.raises(InputError, match="not for sm86"):
        choose_builder(BuildOptions(builder="tensorrt", targets=("sm86",)), [ADA], lambda name: True)
    with pytest.raises(MissingDependencyError):
        choose_builder(BuildOptions(builder="tensorrt-rtx"), [ADA], lambda name: name == "tensorrt")
