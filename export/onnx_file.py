"""ONNX files as graphs in memory."""

from __future__ import annotations

from pathlib import Path

import onnx

from upfusion.runtime.errors import ArtifactError


def read_onnx(path: Path) -> onnx.ModelProto:
    """Return the graph of a file.

    Raises:
        ArtifactError: there is no such file, or it is truncated or not ONNX.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", "check the path")
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's errors share no public base
        raise ArtifactError(
            f"{path} is truncated or not an ONNX file", "name a file that upfusion export wrote, or copy it again"
        ) from error
