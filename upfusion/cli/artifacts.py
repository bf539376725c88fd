"""Open whatever a user names as an artifact: a checkpoint, an ONNX file, or an engine."""

from __future__ import annotations

from pathlib import Path

from upfusion.runtime import Fuser, load
from upfusion.runtime.errors import MissingDependencyError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
LARGEST_SIDE = 1 << 14
"""PyTorch takes any size; this bounds what a checkpoint's contract claims."""


def open_fuser(path: str | Path, *, device: str = "auto", text: str | Path | None = None) -> Fuser:
    """Return a fuser for an ONNX file or an engine, or for a checkpoint through float32 PyTorch.

    Raises:
        ArtifactError: the file is missing, truncated or foreign.
        MissingDependencyError: the library that runs it is not installed.
        DeviceError: it does not run on this machine.
        InputError: a checkpoint without a text feature, and ``text`` is None.
    """
    path = Path(path)
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        return load(path, device=device)
    try:
        from upfusion.checkpoint import load_checkpoint
        from upfusion.text import load_text
        from upfusion.torch_backend import TorchBackend
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is a checkpoint, and running one needs {error.name}", "pip install 'upfusion[export]'"
        ) from error
    checkpoint = load_checkpoint(path)
    backend = TorchBackend(
        checkpoint, load_text(text) if text else None, device="cpu" if device in ("auto", "cpu") else device
    )
    return Fuser(backend, torch_contract(), name=path.name, source=path.name)


def torch_contract():
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
