"""A checkpoint as a backend: the reference that artifacts are compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from upfusion.checkpoint import Checkpoint
from upfusion.model.decisions import recording
from upfusion.runtime.errors import DeviceError, InputError
from upfusion.text import TextFeatures


class TorchBackend:
    """The trained network in float32 PyTorch on the CPU (or CUDA, with TF32 off). Not thread-safe."""

    def __init__(self, checkpoint: Checkpoint, text: TextFeatures | None = None, device: str = "cpu") -> None:
        """Take the network of a loaded checkpoint; ``text`` overrides the feature that it carries.

        Raises:
            InputError: there is no text feature, or no device of that name.
            DeviceError: there is no such GPU here.
        """
        _check_device(device)
        text = text or checkpoint.text
        if text is None:
            raise InputError(
                f"{checkpoint.path} carries no text feature, and the channel order depends on it",
                'make one with: upfusion text "PROMPT" -o text.npz, then pass --text text.npz',
            )
        # TF32 flips near ties in the rankings: a reference does without it.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.device = device
        self.prompt = text.prompt
        self._model = checkpoint.model.to(device)
        self._text = torch.from_numpy(text.features).to(device)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Map ``visible`` (B, 3, H, W) and ``infrared`` (B, 1, H, W) to ``fused`` (B, 1, H, W), not clamped.

        The decisions behind it (names: ``upfusion.model.decisions``) come along.
        """
        images = (torch.from_numpy(inputs[name]).to(self.device) for name in ("visible", "infrared"))
        with torch.inference_mode(), recording(self._model) as decisions:
            fused = self._model(*images, self._text)
        return {"fused": fused.cpu().numpy(), **{name: taken.cpu().numpy() for name, taken in decisions.items()}}

    def close(self) -> None:
        """Let go of the network."""
        del self._model


def _check_device(name: str) -> None:
    """Raise unless PyTorch can run on a device of that name."""
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise InputError(f"a checkpoint does not run on {name!r}", "use --device auto, cpu, cuda or cuda:1")
    if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"{name} was asked for, and PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs",
            "use --device cpu, or see: upfusion doctor",
        )
