"""What a list of times says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Order statistics of times in milliseconds; between two times, percentiles are interpolated linearly."""

    count: int
    """With fewer than 100 times the 99th percentile is little else than the maximum."""
    minimum: float
    mean: float
    median: float
    p90: float
    p99: float
    maximum: float


def summary_of(times_ms: Sequence[float]) -> Summary:
    """Return the statistics of at least one time."""
    assert times_ms
    median, p90, p99 = np.percentile(times_ms, (50, 90, 99)).tolist()
    return Summary(
        count=len(times_ms),
        minimum=float(min(times_ms)),
        mean=float(np.mean(times_ms)),
        median=median,
        p90=p90,
        p99=p99,
        maximum=float(max(times_ms)),
    )
