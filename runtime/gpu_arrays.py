"""Arrays that are on the GPU already: recognised by protocol, given back by protocol.

PyTorch, CuPy, PyCUDA, Numba and JAX need not be known: whatever has ``__cuda_array_interface__`` or ``__dlpack__``
goes in, and the result has both. PyCUDA must share the primary context, in which this package works::

    import pycuda.autoprimaryctx
    import pycuda.gpuarray as gpuarray

    fuse = upfusion.runtime.load("fusion.engine")          # exported with --io image
    fused = fuse(gpuarray.to_gpu(visible), gpuarray.to_gpu(infrared))
    result = gpuarray.GPUArray(fused.shape, fused.dtype, gpudata=fused.address, base=fused)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from upfusion.runtime.cuda import Block, Cuda

LEGACY_DEFAULT_STREAM = 1
"""Its number in the protocols, where 0 would be ambiguous."""

_ON_CUDA = 2
"""DLPack's number of CUDA devices."""


class DeviceArray:
    """A result on the GPU. It owns its memory; whoever takes it over by protocol keeps it alive."""

    def __init__(self, cuda: Cuda, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any], stream: int) -> None:
        self.shape = shape
        self.dtype = dtype
        self._cuda = cuda
        self._block = block
        self._stream = stream

    @property
    def address(self) -> int:
        """Where it begins in the device's memory."""
        return self._block.address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the protocol; work on another stream than ``stream`` must wait for it."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": self._stream or LEGACY_DEFAULT_STREAM,
        }

    def __dlpack__(self, **arguments: Any) -> Any:
        """Hand the memory over; the caller orders its stream as DLPack has it."""
        return self._cuda.exported(self._block, self.shape, self.dtype).__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's description of the device."""
        kind, number = self._cuda.exported(self._block, self.shape, self.dtype).__dlpack_device__()
        return int(kind), int(number)


def is_on_gpu(array: object) -> bool:
    """Whether an array lies in a GPU's memory, by what it says of itself."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == _ON_CUDA


def shape_of(array: Any) -> tuple[int, ...]:
    """Return the shape of an array on the GPU."""
    shape = getattr(array, "shape", None)
    return tuple(array.__cuda_array_interface__["shape"] if shape is None else shape)
