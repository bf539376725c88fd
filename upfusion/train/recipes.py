"""What is minimised, for how long and with which learning rate, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from upfusion.runtime.errors import InputError

Schedule = Literal["cosine", "decay each epoch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what a run learns, apart from the network and the data."""

    terms: tuple[tuple[str, float], ...]
    """Names of ``upfusion.train.objective.TERMS`` with their weights."""
    dark_terms: tuple[tuple[str, float], ...] = ()
    """The same for pairs of which one image is dark (``upfusion.train.examples``); none: they are no exception."""
    visible_plane: Literal["mean", "luma"]
    """What the loss compares with: the plain mean of R, G, B, or luma as the network itself reduces colour."""
    learning_rate: float
    final_learning_rate: float
    schedule: Schedule
    decay: float = 1.0
    """Factor of the learning rate after every epoch (schedule ``decay each epoch``)."""
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    epochs: int
    batch: int = 2
    """Pairs per process and step."""
    crop: int = 192
    """Side of the square crops in pixels, a multiple of 8."""
    flips: bool
    darken: float = 0.0
    """Share of the crops whose first image is darkened (gamma 0.8 to 2.5, gain 0.4 to 1), to imitate night."""
    dim: float = 0.0
    """Share of the crops of which one image or both are dimmed (``upfusion.train.exposure.dark_pair``)."""
    swap: float = 0.0
    """Share of the crops whose two images change places (colour becomes luma). Where the target is symmetric in
    the two, this keeps a run from settling for one modality."""
    reshuffle: bool
    """Whether each epoch has its own order of the pairs."""
    clip_norm: float | None
    """Limit of the gradient norm over all parameters."""
    ema: float | None
    """Decay per step of the average of the weights that is validated and saved."""
    initialisation: Literal["default", "ready to copy"]
    """``upfusion.train.initialisation`` describes the second."""
    steady_order: bool = False
    """Whether a run begins by giving the perturbations one channel order for all images, the mean of those that the
    start weights have (``upfusion.train.steady_order``). Not where the ranking learns."""
    trunk_noise: bool
    """Whether the ConvNeXt trunk drops paths during training, so that the pruning's order is partly random."""

    def __post_init__(self) -> None:
        if self.crop % 8 or self.crop < 48:
            raise InputError(
                f"crops of {self.crop} pixels: the network needs a multiple of 8, the losses at least 48",
                "use --crop 96, 128 or 192",
            )
        if self.batch < 1 or self.epochs < 1:
            raise InputError(
                f"batch {self.batch}, {self.epochs} epochs: both must be at least 1", "check --batch and --epochs"
            )


_SHIPPED = Recipe(
    terms=(("intensity", 15.0), ("gradient", 15.0), ("structure", 1.0), ("edge transfer", 3.0)),
    visible_plane="luma",
    learning_rate=1.2e-3,
    final_learning_rate=1e-5,
    schedule="cosine",
    warmup_steps=60,
    betas=(0.9, 0.99),
    epochs=10,
    batch=2,
    crop=96,
    flips=True,
    darken=0.1,
    swap=0.5,
    reshuffle=True,
    clip_norm=1.0,
    ema=0.98,
    initialisation="ready to copy",
    trunk_noise=False,
)

RECIPES: dict[str, Recipe] = {
    # L = L_grad + L_l1 (eq. 4, 5), Adam, cosine from 1e-4 to 1e-5, 100 epochs, crops 192, batch 2. The paper does not
    # mention flips, clipping or averaging, so there are none.
    "paper": Recipe(
        terms=(("gradient", 1.0), ("intensity", 1.0)),
        visible_plane="mean",
        learning_rate=1e-4,
        final_learning_rate=1e-5,
        schedule="cosine",
        epochs=100,
        flips=False,
        reshuffle=True,
        clip_norm=None,
        ema=None,
        initialisation="default",
        trunk_noise=False,
    ),
    # What the released script does, with its clipping to 1e-4 (the first gradient's norm is about 245) and its sampler
    # that repeats one order.
    "authors-code": Recipe(
        terms=(("intensity", 10.0), ("gradient", 10.0), ("structure", 10.0)),
        visible_plane="mean",
        learning_rate=1e-5,
        final_learning_rate=1e-6,
        schedule="decay each epoch",
        decay=0.8,
        epochs=200,
        flips=True,
        reshuffle=False,
        clip_norm=1e-4,
        ema=None,
        initialisation="default",
        trunk_noise=True,
    ),
    # The two ends of how the weights in this package were made (their model card has the whole way). This one starts
    # from nothing: images close to the maximum first, since metrics say little about a network that copies nothing yet.
    "shipped": _SHIPPED,
    # And this one goes on from trained weights (--start), for the metrics. Without examples it would end in copying one
    # image of each pair, which the metrics forgive; without dim images it would lose contours of a night.
    "refine": replace(
        _SHIPPED,
        terms=(
            ("example", 24.0),
            ("gradient", 1.0),
            ("metric ssim", 18.0),
            ("visual information", 5.0),
            ("edge transfer", 28.0),
            ("phase transfer", 14.0),
        ),
        # SSIM with constants of a range of 2 and VIF are all but decided by noise where an image is dark.
        dark_terms=(
            ("example", 24.0),
            ("gradient", 1.0),
            ("metric ssim", 1.0),
            ("edge transfer", 60.0),
            ("phase transfer", 5.0),
        ),
        learning_rate=6e-4,
        final_learning_rate=5e-6,
        warmup_steps=0,
        darken=0.15,
        dim=0.7,
        ema=0.998,
        steady_order=True,
    ),
}


def recipe_named(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        InputError: there is none of that name.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe is named {name!r}", f"choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
