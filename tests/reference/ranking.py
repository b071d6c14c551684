"""Naive oracles: rankings of models from sums over documents, draw by draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

Sums = Sequence[Sequence[tuple[float, float]]]


def value(model: Sequence[tuple[float, float]], documents: Iterable[int]) -> float:
    """Nats per token over the documents; NaN without any."""
    logprob = weight = 0.0
    for place in documents:
        if model[place][1]:
            logprob, weight = logprob + model[place][0], weight + model[place][1]
    return -logprob / weight if weight else math.nan


def tau(one: Sequence[float], other: Sequence[float]) -> float:
    """scipy's tau-b where every value is there; else by its definition, no order for what is not."""
    if not any(math.isnan(x) for x in (*one, *other)):
        return float(stats.kendalltau(one, other).statistic)
    product, a, b = 0, 0, 0
    for i, j in itertools.combinations(range(len(one)), 2):
        signs = [(values[i] > values[j]) - (values[i] < values[j]) for values in (one, other)]
        product, a, b = product + signs[0] * signs[1], a + signs[0] ** 2, b + signs[1] ** 2
    return product / math.sqrt(a * b) if a * b else math.nan


def share(one: Sequence[float], reference: Sequence[float]) -> float:
    alike, ordered = 0.0, 0
    for i, j in itertools.combinations(range(len(one)), 2):
        if reference[i] < reference[j] or reference[i] > reference[j]:
            ordered += 1
            if one[i] < one[j] or one[i] > one[j]:
                alike += (one[i] < one[j]) == (reference[i] < reference[j])
            else:
                alike += 0.5
    return alike / ordered


def power_curve(sums: Sums, draws: int, seed: int) -> dict[int, tuple[list[float], list[float]]]:
    """By the number of documents, tau and share of each draw."""
    n = len(sums[0])
    keys = np.random.default_rng(seed).random((draws, n))
    found: dict[int, tuple[list[float], list[float]]] = {}
    for size in (1, 2, 4, 8, 16, 32, n - n // 2):
        if size > n - n // 2:
            continue
        taus, shares = [], []
        for key in keys:
            order = sorted(range(n), key=key.__getitem__)
            reference, rest = order[: n // 2], order[n // 2 :]
            ours, theirs = ([value(model, part) for model in sums] for part in (rest[:size], reference))
            if not any(a < b or a > b for a, b in itertools.combinations(theirs, 2)):
                continue
            agreed = tau(ours, theirs)
            taus.append(0.0 if math.isnan(agreed) else agreed)
            shares.append(share(ours, theirs))
        found[size] = taus, shares
    return found
