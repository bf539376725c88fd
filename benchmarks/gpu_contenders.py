"""What runs the network on a GPU: PyTorch in several ways, ONNX Runtime, and engines, as contenders of a benchmark."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upfusion.bench.contender import ImagePair, Opened, opened, opened_by
from upfusion.cli.artifacts import torch_contract
from upfusion.runtime.backends.base import Arrays, Backend
from upfusion.runtime.backends.engine_library import EngineOptions
from upfusion.runtime.errors import InputError
from upfusion.runtime.fuser import Fuser
from upfusion.runtime.manifest import Contract


class DeployBackend:
    """The deploy form in PyTorch: what the graphs are exported from, with the same parts in half precision."""

    def __init__(self, checkpoint: Path, *, half: bool, compiled: bool, device: str = "cuda") -> None:
        """Load and, with ``compiled``, hand it to ``torch.compile``, which works at the first call of each size."""
        import torch

        from upfusion.checkpoint import load_checkpoint
        from upfusion.export.deploy import fix_text, use_half_maps

        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        loaded = load_checkpoint(checkpoint)
        if loaded.text is None:
            raise InputError(f"{checkpoint} carries no text feature", "upfusion convert CHECKPOINT --text text.npz")
        deploy = fix_text(loaded.model, loaded.text)[0]
        if half:
            use_half_maps(deploy)
        self._network: Any = deploy.to(device)
        if compiled:
            self._network = torch.compile(self._network, mode="reduce-overhead")
        self._torch, self._place = torch, device
        self.device = f"{torch.cuda.get_device_name() if device == 'cuda' else device} (PyTorch {torch.__version__})"

    def run(self, inputs: Arrays) -> dict[str, Any]:
        """Return ``fused`` for ``visible`` and ``infrared``, all float32 on the host."""
        with self._torch.inference_mode():
            return {"fused": self._network(*self._copied(inputs)).cpu().numpy()}

    def parts_ms(self, inputs: Arrays) -> dict[str, float]:
        """Run once with a wait after each part, and return the milliseconds of each."""
        with self._torch.inference_mode():
            times = [self._clock()]
            images = self._copied(inputs)
            times.append(self._clock())
            fused = self._network(*images)
            times.append(self._clock())
            fused.cpu().numpy()
            times.append(self._clock())
        names = ("copy_in", "compute", "copy_out")
        return {name: float(value) * 1e3 for name, value in zip(names, np.diff(times), strict=True)}

    def close(self) -> None:
        """Let go of the network."""
        self._network = None

    def _clock(self) -> float:
        """Return the time in seconds when the device has done all that it was given."""
        if self._place == "cuda":
            self._torch.cuda.synchronize()
        return time.perf_counter()

    def _copied(self, inputs: Arrays) -> list[Any]:
        """Return the inputs on the device."""
        return [self._torch.from_numpy(inputs[name]).to(self._place) for name in ("visible", "infrared")]


def graph_path(work: Path, form: str, precision: str, size: tuple[int, int], batch: int) -> Path:
    """Return where a graph lies; ``form`` is plain, ours, or ours-ranks (with the decisions as outputs)."""
    return work / f"{form}.{precision}.{size[0]}x{size[1]}.b{batch}.onnx"


def engine_path(work: Path, builder: str, size: tuple[int, int], batch: int) -> Path:
    """Return where an FP16 engine lies."""
    return work / f"{builder}.fp16.{size[0]}x{size[1]}.b{batch}.engine"


KINDS: Mapping[str, tuple[str, ...]] = {
    "PyTorch eager fp32": ("torch", "fp32", "eager"),
    "PyTorch eager fp16": ("torch", "fp16", "eager"),
    "torch.compile fp16": ("torch", "fp16", "compile"),
    "ONNX Runtime CUDA, plain export fp32": ("onnx", "cuda", "plain", "fp32"),
    "ONNX Runtime CUDA, ours fp32": ("onnx", "cuda", "ours", "fp32"),
    "ONNX Runtime CUDA, ours fp16": ("onnx", "cuda", "ours", "fp16"),
    "ONNX Runtime TensorRT, ours fp16": ("onnx", "tensorrt", "ours", "fp16"),
    "TensorRT fp16": ("engine", "tensorrt"),
    "TensorRT-RTX fp16": ("engine", "tensorrt-rtx"),
}
"""Name of a contender -> what it is."""


def open_kind(name: str, checkpoint: Path, work: Path, size: tuple[int, int], batch: int) -> Opened:
    """Return a contender, loaded.

    Raises:
        UPFusionError: it cannot be had here.
    """
    kind, *rest = KINDS[name]
    if kind == "torch":
        return opened_network(name, checkpoint, batch, half=rest[0] == "fp16", compiled=rest[1] == "compile")
    if kind == "onnx":
        return opened(graph_path(work, rest[1], rest[2], size, batch), rest[0], name=name)
    return opened(engine_path(work, rest[0], size, batch), name=name)


def opened_network(
    name: str, checkpoint: Path, batch: int, *, half: bool, compiled: bool, device: str = "cuda"
) -> Opened:
    """Return the deploy form in PyTorch, loaded."""
    contract = dataclasses.replace(torch_contract(), batch=batch)

    def opening() -> tuple[Backend, Contract, None]:
        return DeployBackend(checkpoint, half=half, compiled=compiled, device=device), contract, None

    return opened_by(opening, checkpoint, name)


def those_that_open(
    names: Sequence[str], open_one: Callable[[str], Opened], pair: ImagePair
) -> tuple[list[Opened], dict[str, float], dict[str, str]]:
    """Open what can be opened and fuses a pair; return it, the milliseconds of that first call, and why not the rest.

    The first call is where ``torch.compile`` and TensorRT-RTX compile.
    """
    found, first_ms, why = [], {}, {}
    for name in names:
        try:
            artifact = open_one(name)
            start = time.perf_counter()
            Fuser(artifact.backend, artifact.contract, name=name)(*pair)
            first_ms[name] = (time.perf_counter() - start) * 1e3
            found.append(artifact)
        except Exception as error:  # of any library: the next one may do
            lines = str(error).strip().splitlines()
            why[name] = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return found, first_ms, why


def engine_with(path: Path, *, graphs: bool) -> Opened:
    """Return an engine that is replayed as a CUDA graph, or enqueued anew each time."""
    return opened(path, options=EngineOptions(graphs=graphs), name="CUDA graph" if graphs else "plain enqueue")
