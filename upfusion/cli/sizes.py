"""Image sizes as they are typed: ``480x640``, or ``256x256:480x640:1024x1280``."""

from __future__ import annotations

import re

from upfusion.runtime.errors import InputError
from upfusion.runtime.manifest import SizeRange


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of ``HEIGHTxWIDTH``.

    Raises:
        InputError: the text is no size, or one that no image has.
    """
    match = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", text)
    if not match:
        raise InputError(f"{text!r} is not a size", "write HEIGHTxWIDTH, such as 480x640")
    from upfusion.runtime.images import SMALLEST

    size = int(match[1]), int(match[2])
    if min(size) < SMALLEST:
        raise InputError(f"{text!r}: images have at least {SMALLEST}x{SMALLEST} pixels", "use a larger size")
    return size


def parse_sizes(text: str) -> SizeRange:
    """Return the range of one size, or of ``MIN:OPT:MAX``.

    Raises:
        InputError: the text is neither.
    """
    parts = [parse_size(part) for part in text.split(":")]
    if len(parts) == 1:
        parts *= 3
    if len(parts) != 3:
        raise InputError(f"{text!r} is not a range of sizes", "write MIN:OPT:MAX, such as 256x256:480x640:1024x1280")
    return SizeRange(minimum=parts[0], optimum=parts[1], maximum=parts[2])
