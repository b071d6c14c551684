"""Naive oracle: how far two selections agree, with sets of places in documents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from longlens.scoring.scores import TokenScores
from tests.reference.keytokens import characters
from tests.reference.metrics import estimate


def units_and_keys(row: TokenScores, alpha: float, beta: float, *, as_tokens: bool) -> tuple[set[Any], set[Any]]:
    """What could be key, and what is."""
    could, key = set(), set()
    for i, (span, lsd, lcl) in enumerate(zip(row.char_spans.tolist(), row.lsd.tolist(), row.lcl.tolist(), strict=True)):
        places = {i} if as_tokens else characters(span)
        if not math.isnan(lsd):
            could |= places
        if lsd > alpha and lcl > beta:
            key |= places
    return could, key


def counts(one: Sequence[TokenScores], other: Sequence[TokenScores], alpha: float, beta: float) -> list[list[int]]:
    as_tokens = all(a.char_spans.tolist() == b.char_spans.tolist() for a, b in zip(one, other, strict=True))
    rows = []
    for a, b in zip(one, other, strict=True):
        (could_a, key_a), (could_b, key_b) = (units_and_keys(row, alpha, beta, as_tokens=as_tokens) for row in (a, b))
        common = could_a & could_b
        rows.append([len(common), len(key_a & common), len(key_b & common), len(key_a & key_b & common)])
    return rows


def jaccard(units: float, one: float, other: float, both: float) -> float:
    return both / (one + other - both)


def kappa(units: float, one: float, other: float, both: float) -> float:
    observed = (both + units - one - other + both) / units
    chance = one / units * other / units + (1 - one / units) * (1 - other / units)
    return (observed - chance) / (1 - chance)


def chance_jaccard(units: int, one: int, other: int) -> float:
    """All ways to choose the other's keys."""
    chosen = set(range(one))
    ways = [len(chosen & set(drawn)) for drawn in itertools.combinations(range(units), other)]
    return sum(both / (one + other - both) for both in ways) / len(ways)


def error_and_freedom(statistic: Any, rows: Sequence[Sequence[int]]) -> tuple[float, float]:
    """By how much the statistic moves with the weight of each document, over 1 - its share of the units."""
    step, total, variance = 1e-6, sum(row[0] for row in rows), 0.0
    for i in range(len(rows)):
        ends = []
        for weight in (1 + step, 1 - step):
            weights = [weight if j == i else 1.0 for j in range(len(rows))]
            ends.append(statistic(*(sum(w * row[k] for w, row in zip(weights, rows, strict=True)) for k in range(4))))
        variance += ((ends[0] - ends[1]) / (2 * step)) ** 2 / (1 - rows[i][0] / total)
    return math.sqrt(variance), estimate([(0.0, row[0]) for row in rows])[2]
