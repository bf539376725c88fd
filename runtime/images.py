"""Image files and arrays as the network sees them: reading, planes in 0..1, padding, rounding, colour.

Everything here follows the authors' inference script to the last bit, so that calibration, verification and every
backend share one preprocessing: float32 value / 255 (16 bit: / 65535), reflect padding at the bottom and the right
only, and on the way back clamp, crop, multiply by 255 in float32 and round half to even.

Images are (H, W) or (H, W, 3) arrays in RGB order, uint8 or uint16. Planes are float32, contiguous in the last axis.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upfusion.runtime.errors import ArtifactError, InputError
from upfusion.runtime.files import replacing

Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Planes = npt.NDArray[np.float32]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""File types that are read and written, in lower case."""

MULTIPLE = 8
"""Height and width of the planes are multiples of this: the network halves the resolution three times."""

SMALLEST = 8
"""Smallest height and width in pixels: reflect padding needs more rows than it adds."""

LUMA = (np.float32(0.299), np.float32(0.587), np.float32(0.114))
"""Weights of R, G, B in luma (BT.601, full range), as the network uses them."""

_PER_LEVEL = {np.dtype(np.uint8): np.float32(255), np.dtype(np.uint16): np.float32(65535)}
_LEVELS = np.float32(255)
_16_TO_8_BIT = np.float32(257)
"""65535 / 255."""
_IN_0_1 = np.arange(256, dtype=np.float32) / _LEVELS
"""Byte -> value in 0..1."""


def read_image(path: str | Path) -> Image:
    """Return an image file as (H, W) or (H, W, 3) RGB, uint8 or uint16, whatever the file holds.

    Raises:
        InputError: missing, unreadable, truncated, with alpha, not 8 or 16 bit, or smaller than 8 pixels.
    """
    return _decoded(Path(path), gray=False)


def read_gray(path: str | Path) -> Image:
    """Return an image file as one gray channel (H, W), uint8 or uint16; colour files are converted by the decoder.

    The infrared image is read this way, as the authors' script reads it.

    Raises:
        InputError: as :func:`read_image`.
    """
    return _decoded(Path(path), gray=True)


def write_image(path: str | Path, image: Image, provenance: str = "") -> None:
    """Write a gray or RGB image; the suffix chooses the format, and the file is complete or absent.

    ``provenance`` says where the image comes from; PNG and JPEG files carry it as a comment, others have no place.

    Raises:
        InputError: an unknown suffix, a folder that does not exist, no space left.
    """
    import cv2

    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: cannot write {path.suffix or 'a file without a suffix'}", f"use {_or(SUFFIXES)}")
    done, encoded = cv2.imencode(path.suffix.lower(), image[..., ::-1] if image.ndim == 3 else image)
    if not done:
        raise InputError(f"{path}: a {image.dtype} image cannot be written as {path.suffix}", "write .png instead")
    with replacing(path) as temporary:
        temporary.write_bytes(_with_comment(encoded.tobytes(), provenance))


def check_image(image: object, name: str) -> Image:
    """Return ``image`` if it is one; ``name`` stands for it in errors.

    Raises:
        InputError: not an array, float values, another channel count than 1 or 3, smaller than 8 pixels.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name}: expected a numpy array, got {type(image).__name__}", "pass uint8 images")
    if np.issubdtype(image.dtype, np.floating):
        with np.errstate(invalid="ignore"):
            broken = int(image.size - np.isfinite(image).sum())
        found = f"{broken} of its values are NaN or infinite" if broken else "float images have no agreed value range"
        raise InputError(
            f"{name}: {image.dtype} pixels, expected uint8 or uint16; {found}",
            "scale to 0..255 and convert: (x.clip(0, 1) * 255).round().astype('uint8')",
        )
    if image.dtype not in _PER_LEVEL:
        raise InputError(f"{name}: {image.dtype} pixels, expected uint8 or uint16", "convert to uint8 or uint16")
    if image.ndim == 3 and image.shape[2] in (2, 4):
        raise InputError(
            f"{name}: {image.shape[2]} channels (an alpha channel, or CMYK), expected 1 or 3",
            f"drop the alpha channel: magick {name} -alpha off {name}",
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"{name}: shape {image.shape}, expected (H, W) or (H, W, 3)", "pass gray or RGB images")
    if min(image.shape[:2]) < SMALLEST:
        raise InputError(
            f"{name}: {image.shape[0]}x{image.shape[1]} pixels (height x width), expected at least "
            f"{SMALLEST}x{SMALLEST}",
            "use a larger image",
        )
    checked: Image = image
    return checked


def check_sizes(first: Image, second: Image, first_name: str, second_name: str) -> None:
    """Raise unless the two images of a pair have the same height and width.

    Raises:
        InputError: naming both images and how to resize.
    """
    if first.shape[:2] == second.shape[:2]:
        return
    height, width = first.shape[:2]
    raise InputError(
        f"{first_name} has {height}x{width} pixels (height x width), "
        f"{second_name} has {second.shape[0]}x{second.shape[1]}",
        "the two images must show the same view, pixel on pixel; if only the size differs: "
        f"magick {second_name} -resize {width}x{height}! {second_name}",
    )


def is_coloured(image: Image) -> bool:
    """Whether an image has three channels that are not all equal."""
    if image.ndim == 2:
        return False
    for part in (image[::16, ::16], image):  # a colour image nearly always shows it in the sample
        if not (np.array_equal(part[..., 0], part[..., 1]) and np.array_equal(part[..., 1], part[..., 2])):
            return True
    return False


def padded_size(height: int, width: int, multiple: int = MULTIPLE) -> tuple[int, int]:
    """Return height and width rounded up to multiples of ``multiple``."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


class Scratch:
    """Memory for the steps in between, kept from one image to the next of the same size. One per thread."""

    def __init__(self) -> None:
        self._size = (0, 0)

    def hold(self, height: int, width: int) -> None:
        """Make the arrays fit images of this size."""
        if self._size != (height, width):
            self._size = (height, width)
            self.levels = np.empty((3, height, width), np.uint8)
            self.values = np.empty((3, height, width), np.float32)
            self.plane, self.product = np.empty((2, height, width), np.float32)


def prepare(first: Image, second: Image, multiple: int = MULTIPLE) -> tuple[Planes, Planes]:
    """Return one pair as the network's inputs: (1, 3, H, W) and (1, 1, H, W) float32 in 0..1, padded.

    A gray first image becomes three equal channels. A second image with three channels becomes its luma, as the
    network does with three-channel infrared.
    """
    height, width = padded_size(first.shape[0], first.shape[1], multiple)
    visible = np.empty((1, 3, height, width), np.float32)
    infrared = np.empty((1, 1, height, width), np.float32)
    scratch = Scratch()
    fill_visible(first, visible[0], scratch)
    fill_infrared(second, infrared[0], scratch)
    return visible, infrared


def fill_visible(image: Image, planes: Planes, scratch: Scratch) -> None:
    """Write an image into (3, H, W) planes that are at least as large, padded by reflection."""
    if image.ndim == 2:
        _fill(image, planes[0])
        planes[1:] = planes[0]
        return
    for channel, plane in zip(_channels(image, scratch), planes, strict=True):
        _fill(channel, plane)


def fill_infrared(image: Image, planes: Planes, scratch: Scratch) -> None:
    """Write an image into (1, H, W) planes that are at least as large, padded by reflection."""
    if image.ndim == 2:
        _fill(image, planes[0])
        return
    height, width = image.shape[:2]
    np.divide(_luma(image, scratch), _PER_LEVEL[image.dtype], out=planes[0, :height, :width])
    _reflect(planes[0], height, width)


def luma(image: Image) -> Planes:
    """Return 0.299 R + 0.587 G + 0.114 B of an (H, W, 3) image in its own levels, float32, not rounded."""
    return _luma(image, Scratch())


def gray8(image: Image) -> npt.NDArray[np.uint8]:
    """Return an image (H, W) or (H, W, 3) RGB, uint8 or uint16, as (H, W) uint8.

    Colour becomes luma, round(0.299 R + 0.587 G + 0.114 B), halves to even, as the metrics' references read it;
    16 bit is divided by 257 before rounding.
    """
    if image.ndim == 2 and image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    levels: npt.NDArray[np.float32] = luma(image) if image.ndim == 3 else image.astype(np.float32)
    if image.dtype == np.uint16:
        levels = levels / _16_TO_8_BIT
    # Equal channels of 255 may come out a rounding error above 255.
    rounded: npt.NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return rounded


def finish(fused: Planes, height: int, width: int, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """Return a fused plane (padded H, W) as an (height, width) uint8 image. ``fused`` is overwritten.

    Clamp to 0..1, crop, times 255 in float32, round half to even.

    Raises:
        ArtifactError: the plane holds NaN or infinite values.
    """
    import cv2

    plane = fused[:height, :width]
    low, high = float(plane.min()), float(plane.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ArtifactError(
            "the fused image holds NaN or infinite values",
            "the artifact overflows on this pair: check it with upfusion accept, or export again with --precision fp32",
        )
    if low < 0:
        np.maximum(plane, 0, out=plane)
    if out is None:
        out = np.empty((height, width), np.uint8)
    # One pass over the image: |x * 255| in float32, rounded half to even and saturated, so that 1 is the upper limit.
    cv2.convertScaleAbs(plane, out, float(_LEVELS))
    return out


def merge_chroma(first: Image, fused: npt.NDArray[np.uint8], scratch: Scratch | None = None) -> npt.NDArray[np.uint8]:
    """Return the fused gray image with the first image's chroma put back: (H, W, 3) RGB uint8.

    Full-range BT.601 (JFIF) YCbCr with Cb and Cr of the first image in float32 and Y = ``fused``. Since
    R - Y, G - Y and B - Y depend on Cb and Cr alone, replacing Y by Y' is the same as adding Y' - Y to each channel::

        RGB' = RGB + (Y' - Y),  rounded half to even, clipped to 0..255

    A 16-bit first image is scaled to 0..255 (divided by 257) beforehand. A gray one gives three equal channels.
    """
    import cv2

    out = np.empty((*fused.shape, 3), np.uint8)
    if first.ndim == 2:
        out[...] = fused[..., None]
        return out
    scratch = scratch or Scratch()
    shift = _luma(first, scratch)  # leaves the channels in scratch.values
    scale = _PER_LEVEL[first.dtype] / _LEVELS
    if scale != 1:
        np.divide(scratch.values, scale, out=scratch.values)
        np.divide(shift, scale, out=shift)
    np.subtract(fused, shift, out=shift)
    for values, levels in zip(scratch.values, scratch.levels, strict=True):
        # float32 on both sides: with bytes on one, OpenCV would round the other before it adds.
        cv2.add(values, shift, levels, None, cv2.CV_8U)
    cv2.merge(list(scratch.levels), out)
    return out


def _luma(image: Image, scratch: Scratch) -> Planes:
    """Return 0.299 R + 0.587 G + 0.114 B in the image's own levels, not rounded; ``scratch.values`` gets R, G, B."""
    channels = _channels(image, scratch)
    values, plane = scratch.values, scratch.plane
    for target, channel in zip(values, channels, strict=True):
        np.copyto(target, channel)
    np.multiply(values[0], LUMA[0], out=plane)
    for place in (1, 2):
        np.multiply(values[place], LUMA[place], out=scratch.product)
        np.add(plane, scratch.product, out=plane)
    return plane


def _channels(image: Image, scratch: Scratch) -> Sequence[npt.NDArray[Any]]:
    """Return R, G and B of an image; those of bytes lie in ``scratch.levels``."""
    import cv2

    scratch.hold(image.shape[0], image.shape[1])
    if image.dtype != np.uint8:
        return [image[..., channel] for channel in range(3)]
    levels = list(scratch.levels)
    cv2.split(image, levels)
    return levels


def _fill(channel: npt.NDArray[Any], plane: Planes) -> None:
    """Write one channel of integers as values in 0..1 into a plane, and pad it."""
    import cv2

    height, width = channel.shape
    inside = plane[:height, :width]
    if channel.dtype == np.uint8:
        cv2.LUT(channel, _IN_0_1, inside)  # three times as fast as dividing
    else:
        np.divide(channel, _PER_LEVEL[channel.dtype], out=inside)
    _reflect(plane, height, width)


def _reflect(plane: Planes, height: int, width: int) -> None:
    """Fill what lies below ``height`` and right of ``width`` by reflection; the edge itself is not repeated."""
    below, right = plane.shape[0] - height, plane.shape[1] - width
    if below:
        plane[height:, :width] = plane[height - 1 - below : height - 1, :width][::-1]
    if right:
        plane[:, width:] = plane[:, width - 1 - right : width - 1][:, ::-1]


def _decoded(path: Path, *, gray: bool) -> Image:
    """Return a file's pixels, checked."""
    import cv2

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from error
    jpeg = data[:2] == b"\xff\xd8"
    if not data or (jpeg and not _jpeg_ends(data)):
        raise InputError(f"{path}: {'empty' if not data else 'truncated'} file", "copy or export the image again")
    buffer = np.frombuffer(data, np.uint8)
    # JPEG: let the decoder follow the EXIF orientation (there is no alpha to lose). Others: unchanged, to see alpha.
    image = cv2.imdecode(buffer, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR if jpeg else cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(
            f"{path}: not an image that can be read, or truncated", f"expected {_or(SUFFIXES)}: export the image again"
        )
    checked = check_image(image, str(path))
    if checked.ndim == 2:
        return checked
    if gray:
        # Decoders convert on their own (JPEG keeps its Y plane), so ask them instead of converting here.
        return check_image(cv2.imdecode(buffer, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_GRAYSCALE), str(path))
    rgb: Image = np.ascontiguousarray(checked[..., ::-1])  # type: ignore[assignment]
    return rgb


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _jpeg_ends(data: bytes) -> bool:
    """Whether a JPEG file goes on to its end marker; decoders fill the missing rest with gray and say nothing."""
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        if data[marker.start() + 1] == 0xD9:
            return True
        # Every other marker between the start and the end of an image carries a length, which counts itself.
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False


def _with_comment(data: bytes, text: str) -> bytes:
    """Return the bytes of an image file with a comment: PNG's iTXt as last chunk, JPEG's COM as second segment."""
    comment = text.encode()
    if comment and data.startswith(b"\x89PNG"):
        content = b"iTXt" + b"Comment\0" + b"\0\0" + b"\0" + b"\0" + comment  # not compressed, no language
        chunk = (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
        return data[:-12] + chunk + data[-12:]  # IEND is the last chunk and has no content
    if comment and data.startswith(b"\xff\xd8"):
        place = 4 + int.from_bytes(data[4:6], "big")  # behind JFIF's own segment, which must come first
        return data[:place] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[place:]
    return data


def _or(words: tuple[str, ...]) -> str:
    """Return ``a, b or c``."""
    return f"{', '.join(words[:-1])} or {words[-1]}"
