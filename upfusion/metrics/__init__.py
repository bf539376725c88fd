"""Image fusion metrics on 8-bit grey images, equal to the public reference implementations.

::

    from upfusion.metrics import PAPER_METRICS, Sources, evaluate, evaluate_sources

    evaluate(visible, infrared, fused, PAPER_METRICS)      # {'Q_NCIE': ..., 'Q_P': ..., ...}

    pair = Sources(visible, infrared)                      # many fused images of one pair:
    for fused in results:                                  # what is computed of the sources alone is kept
        evaluate_sources(pair, fused)

Every value is finite for every image, edge cases included, so that no NaN can enter a mean unseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from upfusion.metrics.registry import ALIASES, METRICS, PAPER_METRICS, Metric
from upfusion.metrics.sources import Image, Sources
from upfusion.runtime.errors import InputError

__all__ = ["METRICS", "PAPER_METRICS", "Metric", "Sources", "evaluate", "evaluate_sources", "metric_named"]


def evaluate(first: Image, second: Image, fused: Image, names: Iterable[str] | None = None) -> dict[str, float]:
    """Return metrics of a fused image under their names in ``METRICS``; all of them without ``names``.

    The images are (H, W) uint8 grey levels of one size; colour is turned into luma first,
    round(0.299 R + 0.587 G + 0.114 B).

    Raises:
        InputError: an image has another type, shape or size, or a name is unknown.
    """
    return evaluate_sources(Sources(first, second), fused, names)


def evaluate_sources(sources: Sources, fused: Image, names: Iterable[str] | None = None) -> dict[str, float]:
    """Return metrics as :func:`evaluate` does, reusing what ``sources`` keeps of the two sources.

    Raises:
        InputError: as for :func:`evaluate`.
    """
    sources.check_fused(fused)
    wanted = {name: metric_named(name) for name in (METRICS if names is None else names)}
    values = {name: float(metric.function(sources, fused)) for name, metric in wanted.items()}
    assert all(math.isfinite(value) for value in values.values()), values
    return values


def metric_named(name: str) -> Metric:
    """Return the metric of that name, letter by letter.

    Raises:
        InputError: there is none.
    """
    try:
        return METRICS[ALIASES.get(name, name)]
    except KeyError:
        raise InputError(f"there is no metric {name!r}", f"the metrics are {', '.join(METRICS)}") from None
