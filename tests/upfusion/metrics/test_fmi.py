"""Feature mutual information against its definition written out window by window."""

from __future__ import annotations

import math

import numpy as np
import pytest

from upfusion.metrics import evaluate


def window_value(u: np.ndarray, v: np.ndarray) -> float:
    """The normalised information of two windows, with the lower Frechet bound as such and plain loops."""
    a, b = (list(map(float, w.T.ravel())) for w in (u, v))
    if a == b:
        return 1.0
    n = len(a)

    def distribution(values: list[float]) -> list[float]:
        raised = [value - min(values) for value in values]
        return [value / sum(raised) for value in raised] if sum(raised) else [1 / n] * n

    def entropy(values: list[float]) -> float:
        return -sum(value * math.log(value) for value in values if value > 0)

    def deviation(p: list[float]) -> float:
        mean = sum(i * value for i, value in enumerate(p))
        return math.sqrt(max(0.0, sum((i - mean) ** 2 * value for i, value in enumerate(p))))

    p, q = distribution(a), distribution(b)
    correlation = 0.0
    if min(a) < max(a) and min(b) < max(b):
        correlation = float(np.corrcoef(a, b)[0, 1])
    f, g = [0.0, *np.cumsum(p)], [0.0, *np.cumsum(q)]

    def bound(i: int, j: int) -> float:
        return min(f[i], g[j]) if correlation >= 0 else max(f[i] + g[j] - 1, 0.0)

    covariance = sum(bound(i, j) - f[i] * g[j] for i in range(1, n + 1) for j in range(1, n + 1))
    scale = deviation(p) * deviation(q)
    mixed = 0.0
    if scale > 1e-12 and abs(covariance) > 1e-12:
        mixed = min(1.0, max(0.0, correlation / (covariance / scale)))
    joint = [
        mixed * (bound(i + 1, j + 1) - bound(i, j + 1) - bound(i + 1, j) + bound(i, j)) + (1 - mixed) * p[i] * q[j]
        for i in range(n)
        for j in range(n)
    ]
    separate = entropy(p) + entropy(q)
    return 2 * (separate - entropy(joint)) / separate if separate else 1.0


@pytest.mark.parametrize("seed", [1, 2])
def test_equal_to_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (9, 11), dtype=np.uint8)
    second = np.clip(255 - first.astype(int) + rng.integers(-40, 40, first.shape), 0, 255).astype(np.uint8)
    second[:5, :5] = 30  # a flat part
    fused = ((first.astype(int) + second) // 2).astype(np.uint8)
    maps = [np.hypot(*np.gradient(image.astype(float))) for image in (first, second, fused)]
    values = [
        window_value(source[i : i + 3, j : j + 3], maps[2][i : i + 3, j : j + 3])
        for source in maps[:2]
        for i in range(7)
        for j in range(9)
    ]
    # 1e-9: cumulative sums end at 1 up to rounding, which the bounds carry along.
    assert evaluate(first, second, fused, ["FMI"])["FMI"] == pytest.approx(np.mean(values), rel=1e-9)
