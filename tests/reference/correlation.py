"""Naive oracle: coefficients, p and intervals of correlations, with lists and loops; nothing of scipy.stats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

Coefficient = Callable[[Sequence[float], Sequence[float]], float]


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """NaN where one side has no spread."""
    n = len(x)
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    xy = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    xx, yy = math.fsum((a - mean_x) ** 2 for a in x), math.fsum((b - mean_y) ** 2 for b in y)
    return xy / math.sqrt(xx * yy) if min(xx, yy) > 1e-20 else math.nan


def ranks(x: Sequence[float]) -> list[float]:
    """From 1; equal values have the mean of their ranks."""
    return [sum(other < value for other in x) + (sum(other == value for other in x) + 1) / 2 for value in x]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's r of the ranks."""
    return pearson(ranks(x), ranks(y))


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Tau-b: pairs in the same order less those in the other one, over the geometric mean of untied pairs."""
    balance = of_x = of_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        one, other = (x[i] > x[j]) - (x[i] < x[j]), (y[i] > y[j]) - (y[i] < y[j])
        balance, of_x, of_y = balance + one * other, of_x + abs(one), of_y + abs(other)
    return balance / math.sqrt(of_x * of_y) if of_x and of_y else math.nan


def exact_p(x: Sequence[float], y: Sequence[float], coefficient: Coefficient) -> float:
    """The share of all orders of y with a coefficient as far from 0."""
    limit = abs(coefficient(x, y)) - 1e-10
    orders = list(itertools.permutations(y))
    return sum(abs(coefficient(x, order)) >= limit for order in orders) / len(orders)


def bca_interval(
    resampled: Sequence[float], observed: float, left_out: Sequence[float], levels: tuple[float, float]
) -> tuple[float, float]:
    """Efron's BCa, from the values of resamples, that of the sample, and those without one of its rows each."""
    normal = NormalDist()
    there = sorted(value for value in resampled if not math.isnan(value))
    below = sum(1.0 if value < observed - 1e-12 else 0.5 * (value <= observed + 1e-12) for value in there)
    bias = normal.inv_cdf(below / len(there))
    mean = math.fsum(left_out) / len(left_out)
    cubes, squares = (math.fsum((mean - value) ** power for value in left_out) for power in (3, 2))
    acceleration = cubes / (6 * squares**1.5)
    ends = []
    for level in levels:
        z = bias + normal.inv_cdf(level)
        place = normal.cdf(bias + z / (1 - acceleration * z)) * (len(there) - 1)
        low = int(place)
        high = min(low + 1, len(there) - 1)
        ends.append(there[low] + (place - low) * (there[high] - there[low]))
    return ends[0], ends[1]
