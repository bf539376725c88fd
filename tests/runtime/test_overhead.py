"""What the runtime keeps from call to call: nothing that grows."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from upfusion.runtime.backends.null import NullBackend
from upfusion.runtime.fuser import Fuser, load

GROWTH_BYTES = 16 << 10
"""Interpreter caches and the tracer's own records move by a few kilobytes; one kept image would be 12 kB per call."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("color", ["gray", "ycbcr"])
@pytest.mark.parametrize("runs_on", ["nothing", "onnxruntime"])
def test_a_thousand_calls_keep_nothing(tmp_path: Path, make: Any, noise: Any, color: str, runs_on: str) -> None:
    contract = make.tensor_contract()
    if runs_on == "nothing":
        fuser = Fuser(NullBackend(contract), contract)
    else:
        path = make.onnx(tmp_path / "tiny.onnx", contract)
        fuser = load(path, device="cpu", options=make.options)
    visible, infrared = noise((61, 83, 3)), noise((61, 83))
    for _ in range(50):
        fuser(visible, infrared, color)
    resident = resident_bytes() if Path("/proc/self/statm").exists() else None
    tracemalloc.start()
    try:
        for _ in range(20):
            fuser(visible, infrared, color)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            fuser(visible, infrared, color)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < GROWTH_BYTES
    if resident is not None:
        assert resident_bytes() - resident < 4 << 20  # a leaked image per call would be 15 MB


def test_a_thousand_streamed_pairs_keep_nothing(make: Any, noise: Any) -> None:
    contract = make.tensor_contract()
    fuser = Fuser(NullBackend(contract), contract)
    pair = noise((61, 83, 3)), noise((61, 83))

    def run(count: int) -> None:
        for outcome in fuser.stream(pair for _ in range(count)):
            outcome.result()

    run(20)
    tracemalloc.start()
    try:
        run(50)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        run(1000)
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < GROWTH_BYTES
    assert peak - before < 1 << 20  # a few images under way, not a thousand
