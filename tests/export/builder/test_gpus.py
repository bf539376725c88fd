"""Reading the driver's listing; asking this machine."""

from __future__ import annotations

import pytest

from upfusion.export.builder.gpus import Gpu, gpus_from_listing, installed_gpus


def test_reads_a_listing() -> None:
    listing = "NVIDIA GeForce RTX 4090, 8.9, 24564, 580.65.06\nNVIDIA RTX PRO 6000, 12.0, 97887, 580.65.06\n"
    assert gpus_from_listing(listing) == [
        Gpu(
            name="NVIDIA GeForce RTX 4090",
            compute_capability=(8, 9),
            memory_bytes=24564 << 20,
            driver="580.65.06",
        ),
        Gpu(
            name="NVIDIA RTX PRO 6000",
            compute_capability=(12, 0),
            memory_bytes=97887 << 20,
            driver="580.65.06",
        ),
    ]
    assert [gpu.target for gpu in gpus_from_listing(listing)] == ["sm89", "sm120"]


def test_a_listing_of_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unpack|values"):
        gpus_from_listing("No devices were found\n")


def test_no_program_and_no_library_mean_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.core", None)
    monkeypatch.setattr("upfusion.export.builder.gpus.shutil.which", lambda name: None)
    assert installed_gpus() == []


@pytest.mark.gpu
def test_this_machines_gpu() -> None:
    gpus = installed_gpus()
    if not gpus:
        pytest.skip("no NVIDIA GPU")
    assert gpus[0].memory_bytes > 1 << 30
