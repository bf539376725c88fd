"""The library of this worker process under the one name ``trt``; typed as TensorRT.

Importable only after :func:`upfusion.export.builder.library.load`, that is, in the worker. Members that not all
three libraries have are reached through ``hasattr`` or ``getattr``, so that the type checker, run against each
library's typings, proves that the rest is common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt
else:
    from upfusion.export.builder.library import loaded

    trt = loaded().module

__all__ = ["trt"]
