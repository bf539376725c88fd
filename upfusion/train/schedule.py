"""The learning rate of each step."""

from __future__ import annotations

import math

from upfusion.train.recipes import Recipe


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Return the learning rate of step 0..total_steps - 1.

    ``cosine`` falls from ``learning_rate`` to ``final_learning_rate`` over the whole run; ``decay each epoch``
    multiplies by ``decay`` after every epoch and stops at ``final_learning_rate``. Either rises linearly first over
    ``warmup_steps``.
    """
    high, low = recipe.learning_rate, recipe.final_learning_rate
    if recipe.schedule == "cosine":
        rate = low + (high - low) * (1 + math.cos(math.pi * step / total_steps)) / 2
    else:
        rate = max(low, high * recipe.decay ** (step // steps_per_epoch))
    if recipe.warmup_steps:
        rate *= min(1.0, (step + 1) / recipe.warmup_steps)
    return rate
