"""A package that is not installed, as an error that names the extra which brings it."""

from __future__ import annotations

from collections.abc import Mapping

from upfusion.runtime.errors import MissingDependencyError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "torch": ("export", "train"),
    "timm": ("export", "train"),
    "safetensors": ("export", "train"),
    "onnx": ("export", "bench", "train"),
    "onnx_ir": ("export", "train"),
    "onnxscript": ("export", "train"),
    "scipy": ("metrics", "export", "train"),
    "skimage": ("metrics", "train"),
    "matplotlib": ("metrics", "bench", "train"),
    "tensorboard": ("train",),
    "open_clip": ("text",),
    "polygraphy": ("verify",),
}
"""Module -> the extras that bring it; the first is named where the verb's own list does not decide."""


def missing_package(error: ImportError, verb: str) -> MissingDependencyError | None:
    """Return the error of a verb that found a package missing; None if no extra brings it, which makes it a bug."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    from upfusion.doctor import NEEDS

    own = (need.extras for need in NEEDS if need.verb == verb and set(need.extras) & set(EXTRAS[module]))
    extras = next(own, EXTRAS[module][:1])
    return MissingDependencyError(
        f"upfusion {verb} needs the package {module}, which is not installed",
        f"pip install 'upfusion[{','.join(extras)}]'; upfusion doctor lists what each verb needs",
    )
