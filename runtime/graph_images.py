"""Images as one graph takes them, and its outputs as images: sizes, layout, order of colours, chroma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from upfusion.runtime import images
from upfusion.runtime.backends.base import Arrays, Shape
from upfusion.runtime.errors import InputError
from upfusion.runtime.images import Image
from upfusion.runtime.manifest import LUMA_OUTPUT, Contract

Color = Literal["auto", "gray", "ycbcr"]
"""Colour of the result: luma only, or with the chroma of the first image; ``auto``: ycbcr if that is coloured."""

Fused = npt.NDArray[np.uint8]


class GraphImages:
    """What a contract says about images, carried out. Images are in RGB order here, whatever the graph's is."""

    def __init__(self, contract: Contract, *, name: str, source: str) -> None:
        """``name`` is the artifact's and ``source`` the checkpoint's file name, for messages."""
        self._contract = contract
        self._name = name
        self._source = source
        self._bgr = contract.channels == "bgr"
        self.fixed_batch = isinstance(contract.inputs[0].shape[0], int)
        """Whether the graph takes ``contract.batch`` pairs and no other number."""
        # Decisions do not depend on the images' size, and graphs that take them have a fixed batch.
        self._decisions = {
            spec.name: tuple(side for side in spec.shape if isinstance(side, int)) for spec in contract.decision_inputs
        }

    def check_types(self, first: Image, second: Image) -> None:
        """Raise unless the graph takes images of these types.

        Raises:
            InputError: 16-bit or coloured infrared images, and a graph that takes bytes.
        """
        if self._contract.io == "tensor":
            return
        if first.dtype != np.uint8 or second.dtype != np.uint8:
            raise InputError(
                f"{self._name} takes 8-bit images, these are {first.dtype} and {second.dtype}",
                "convert them to uint8, or export with --io tensor for 16 bit",
            )
        if second.ndim != 2:
            raise InputError(f"{self._name} takes infrared images with one channel", "pass infrared[..., 0]")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that images of this size have inside the graph.

        Raises:
            InputError: the artifact does not take it.
        """
        multiple = self._contract.size_multiple if self._contract.io == "tensor" else 1
        padded = images.padded_size(height, width, multiple)
        sizes = self._contract.sizes
        if sizes.holds(*padded):
            return padded
        (low_h, low_w), (high_h, high_w) = sizes.minimum, sizes.maximum
        low_h, low_w = (max(low - multiple + 1, images.SMALLEST) for low in (low_h, low_w))
        taken = f"{_range(low_h, high_h)} x {_range(low_w, high_w)}"
        raise InputError(
            f"the images have {height}x{width} pixels (height x width), {self._name} takes {taken}",
            f"upfusion export {self._source} -o fusion.onnx --size {height}x{width}, or --dynamic for any size; "
            "or resize the images",
        )

    def shapes(self, count: int, height: int, width: int) -> dict[str, Shape]:
        """Return the shapes of the graph's inputs, decisions among them, for ``count`` images of a size.

        Raises:
            InputError: the artifact does not take it.
        """
        count = self._contract.batch if self.fixed_batch else count
        height, width = self.size(height, width)
        image_io = self._contract.io == "image"
        one, two = (spec.name for spec in self._contract.inputs)
        return {
            one: (count, height, width, 3) if image_io else (count, 3, height, width),
            two: (count, height, width) if image_io else (count, 1, height, width),
            **self._decisions,
        }

    def fill(self, inputs: Arrays, firsts: Sequence[Image], seconds: Sequence[Image], scratch: images.Scratch) -> None:
        """Write images of one graph size into arrays of :meth:`shapes`."""
        one, two = (spec.name for spec in self._contract.inputs)
        for place, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
            if self._contract.io == "image":
                visible = flipped(first) if self._bgr else first
                inputs[one][place] = visible if first.ndim == 3 else visible[..., None]
                inputs[two][place] = second
            else:
                images.fill_visible(first, inputs[one][place], scratch)
                images.fill_infrared(second, inputs[two][place], scratch)
        for array in (inputs[one], inputs[two]):
            array[len(firsts) :] = array[:1]  # a fixed batch that is not full: any valid images will do

    def image(self, outputs: Arrays, place: int, first: Image, color: Color, scratch: images.Scratch) -> Fused:
        """Return one image of the graph's outputs as the caller asked for it, in memory of its own."""
        contract = self._contract
        gray_wanted = color == "gray" or first.ndim == 2 or (color == "auto" and not images.is_coloured(first))
        fused = outputs[contract.outputs[0].name][place]
        gray: Fused
        if contract.io == "tensor":
            gray = images.finish(fused[0], *first.shape[:2])
        elif contract.color == "gray":
            gray = np.array(fused)
        elif not gray_wanted:
            image = np.array(fused)
            return flipped(image) if self._bgr else image
        elif contract.gives_luma:
            return np.array(outputs[LUMA_OUTPUT][place])
        elif first.ndim == 3 and images.is_coloured(first):
            raise InputError(
                f"{self._name} puts the colour back inside the graph",
                "leave the colour to it, or export with --color gray",
            )
        else:
            return np.array(fused[..., 0])  # of a gray image all three channels are the fused luma
        return gray if gray_wanted else images.merge_chroma(first, gray, scratch)


def flipped(image: Any) -> Any:
    """Return a view of an image with its colour channels in the opposite order; a gray one as it is."""
    return image[..., ::-1] if image.ndim == 3 else image


def _range(low: int, high: int) -> str:
    """Return ``8..16``, or ``8`` where only one size fits."""
    return str(low) if low == high else f"{low}..{high}"
