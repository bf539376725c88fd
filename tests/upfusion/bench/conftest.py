"""Artifacts of constant speed for the benchmark: no library, no luck."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upfusion.bench.contender import Opened
from upfusion.runtime.backends.null import NullBackend
from upfusion.runtime.manifest import Contract, Manifest, SizeRange, Source, TensorSpec, TextRecord


class Slow(NullBackend):
    """Zeros after ``seconds``, with an ``InferenceSession`` beneath that takes half as long."""

    def __init__(self, contract: Contract, seconds: float, device: str = "CPU") -> None:
        super().__init__(contract)
        self.device, self.seconds, self.closed = device, seconds, 0
        self.session: Any = self if device == "CPU" else None
        self._contract = contract

    def run(self, inputs: Any, planes: Any = None) -> Any:
        if planes is not None:  # as a session
            assert planes["visible"].dtype == np.float32
            time.sleep(self.seconds / 2)
            return None
        time.sleep(self.seconds)
        return super().run(inputs)

    def another(self) -> Slow:
        return Slow(self._contract, self.seconds, self.device)

    def close(self) -> None:
        self.closed += 1
        super().close()


class Timed(Slow):
    """Tells its parts apart, as engines do."""

    def parts_ms(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        return {"copy_in": 1.0, "compute": 8.0, "copy_out": 2.0}

    def another(self) -> Timed:
        return Timed(self._contract, self.seconds, self.device)


def contract(batch: int | str = 1) -> Contract:
    def plane(name: str, channels: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=(batch, channels, "height", "width"), meaning="RGB 0..1")

    return Contract(
        io="tensor",
        inputs=(plane("visible", 3), plane("infrared", 1)),
        outputs=(plane("fused", 1),),
        batch=batch if isinstance(batch, int) else 1,
        sizes=SizeRange(minimum=(16, 16), optimum=(24, 32), maximum=(64, 64)),
    )


def manifest(terms: Contract) -> Manifest:
    return Manifest(
        kind="onnx",
        source=Source(name="tiny.safetensors", sha256="0" * 64, preset="tiny", config={}),
        text=TextRecord(prompt="a prompt", encoder="none", permutations={}, smallest_gaps={}),
        precision="fp16",
        contract=terms,
        opset=20,
        versions={},
        parity={},
        sha256="1" * 64,
    )


@pytest.fixture
def artifact() -> Any:
    """Makes artifacts: ``artifact("a", seconds=0.002, batch=1, timed=False, device="CPU")``."""

    def make(
        name: str,
        seconds: float = 0.002,
        batch: int | str = 1,
        *,
        timed: bool = False,
        device: str = "CPU",
        **more: Any,
    ) -> Opened:
        terms = contract(batch)
        backend = (Timed if timed else Slow)(terms, seconds, device)
        opened = Opened(
            name=name,
            path=Path(f"{name}.onnx"),
            backend=backend,
            contract=terms,
            manifest=manifest(terms),
            load_seconds=0.5,
            grown_bytes=1000,
        )
        return dataclasses.replace(opened, **more)

    return make
