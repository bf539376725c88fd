"""Open whatever a user names as an artifact: a checkpoint, an ONNX file, or an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from upfusion.runtime import Fuser, load
from upfusion.runtime.artifact import CHECKPOINT_SUFFIXES, open_backend
from upfusion.runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from upfusion.bench.contender import Opened
    from upfusion.export.acceptance import Subject
    from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions
    from upfusion.runtime.held_ranking import HeldRanking
    from upfusion.runtime.manifest import Contract
    from upfusion.torch_backend import TorchBackend

LARGEST_SIDE = 1 << 14
"""PyTorch takes any size; this bounds what a checkpoint's contract claims."""


def open_fuser(path: str | Path, *, device: str = "auto", text: str | Path | None = None, contexts: int = 1) -> Fuser:
    """Return a fuser for an ONNX file or an engine, or for a checkpoint through float32 PyTorch.

    With several ``contexts`` an ONNX file on the CPU gives each of them its share of the cores: two pairs side by side
    are faster than two cores on one pair.

    Raises:
        ArtifactError: the file is missing, truncated or foreign.
        MissingDependencyError: the library that runs it is not installed.
        DeviceError: it does not run on this machine.
        InputError: a checkpoint without a text feature, and ``text`` is None; or one in several contexts.
    """
    path = Path(path)
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        return load(path, device=device, contexts=contexts, options=_shared_cores(path, device, contexts))
    return Fuser(
        _torch_backend(path, device, text), torch_contract(), name=path.name, source=path.name, contexts=contexts
    )


def open_held_ranking(
    ranker: Path, between: Path, every: int, *, device: str = "auto", contexts: int = 1
) -> HeldRanking:
    """Return what fuses videos with rankings that hold for ``every`` frames.

    Raises:
        ArtifactError: a file that is no ONNX file or engine, or two that do not go together.
        MissingDependencyError: the library that runs them is not installed.
        DeviceError: they do not run on this machine.
    """
    from upfusion.runtime.held_ranking import load_held_ranking

    options = _shared_cores(ranker, device, contexts)
    return load_held_ranking(ranker, between, every, device=device, contexts=contexts, options=options)


def _shared_cores(path: Path, device: str, contexts: int) -> OnnxRuntimeOptions | None:
    """Return options that divide the cores among contexts, None where the CPU does not run them."""
    if contexts == 1 or path.suffix != ".onnx":
        return None
    from upfusion.runtime.backends.onnxruntime import OnnxRuntimeOptions, available_providers

    if device != "cpu" and not (device == "auto" and "cuda" not in available_providers()):
        return None
    return OnnxRuntimeOptions(threads=max((os.cpu_count() or 1) // contexts, 1))


def open_subject(path: str | Path, *, device: str = "auto", text: str | Path | None = None) -> Subject:
    """Return the same as a bare backend with its contract, as the gate takes it; the caller closes the backend."""
    from upfusion.export.acceptance import Subject

    path = Path(path)
    if path.suffix.lower() in CHECKPOINT_SUFFIXES:
        return Subject(name=path.name, backend=_torch_backend(path, device, text), contract=torch_contract())
    backend, manifest = open_backend(path, device, None, takes_decisions=True)  # the gate hands them in
    return Subject(name=path.name, backend=backend, contract=manifest.contract)


def open_for_bench(path: Path, device: str, text: str | Path | None, name: str) -> Opened:
    """Return a checkpoint in float32 PyTorch as a benchmark takes it; errors as :func:`open_fuser`'s."""
    from upfusion.bench.contender import opened_by

    return opened_by(lambda: (_torch_backend(path, device, text), torch_contract(), None), path, name)


def _torch_backend(path: Path, device: str, text: str | Path | None) -> TorchBackend:
    """Load a checkpoint into float32 PyTorch."""
    try:
        from upfusion.checkpoint import load_checkpoint
        from upfusion.text import load_text
        from upfusion.torch_backend import TorchBackend
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is a checkpoint, and running one needs {error.name}", "pip install 'upfusion[export]'"
        ) from error
    return TorchBackend(
        load_checkpoint(path),
        load_text(text) if text else None,
        device="cpu" if device in ("auto", "cpu") else device,
    )


def torch_contract() -> Contract:
    """Return the contract of the network in PyTorch: any batch, any padded size."""
    from upfusion.runtime.manifest import Contract, SizeRange, TensorSpec

    def plane(name: str, channels: int) -> TensorSpec:
        return TensorSpec(
            name=name, dtype="float32", shape=("batch", channels, "height", "width"), meaning="NCHW, 0..1"
        )

    return Contract(
        io="tensor",
        inputs=(plane("visible", 3), plane("infrared", 1)),
        outputs=(plane("fused", 1),),
        batch=1,
        sizes=SizeRange(minimum=(8, 8), optimum=(480, 640), maximum=(LARGEST_SIDE, LARGEST_SIDE)),
    )
