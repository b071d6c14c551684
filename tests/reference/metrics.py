"""Naive oracles: perplexities token by token, in Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from longlens.scoring.scores import TokenScores
from tests.reference.keytokens import carry_weights


def perplexity(rows: Sequence[TokenScores]) -> float:
    logprobs = [float(p) for row in rows for p in row.long_logprobs if not math.isnan(p)]
    return math.exp(-sum(logprobs) / len(logprobs))


def longppl_soft(rows: Sequence[TokenScores], evaluated: Sequence[TokenScores], gamma: float) -> float:
    total = weight = 0.0
    for row, other in zip(rows, evaluated, strict=True):
        influence = [0.0 if math.isnan(d) else min(math.exp(d), gamma) for d in other.lsd.tolist()]
        for w, p in zip(
            carry_weights(other.char_spans.tolist(), influence, row.char_spans.tolist()),
            row.long_logprobs.tolist(),
            strict=True,
        ):
            if not math.isnan(p):
                total, weight = total + w * p, weight + w
    return math.exp(-total / weight)


def reoccurred_words(text: str, n: int) -> list[bool]:
    """By definition, for all N >= n: a word is in an N-gram that began earlier too."""
    words = text.split()
    marked = [False] * len(words)
    for size in range(n, len(words) + 1):
        for start in range(len(words) - size + 1):
            if any(words[start : start + size] == words[before : before + size] for before in range(start)):
                marked[start : start + size] = [True] * size
    return marked


def estimate(sums, minus=None):
    """``(value, error, degrees of freedom)``, one document after the other; see `longlens.metrics.uncertainty`."""
    kept = [i for i, (_, w) in enumerate(sums) if w]  # the others change nothing
    sums, minus = ([column[i] for i in kept] if column is not None else None for column in (sums, minus))
    n = len(sums)
    ratios, moved, share = [], [0.0] * n, [0.0] * n
    both = [(1, sums)] if minus is None else [(1, sums), (-1, minus)]
    for sign, column in both:
        total = math.fsum(w for _, w in column)
        ratio = math.fsum(x for x, _ in column) / total
        ratios.append(sign * ratio)
        for i, (x, w) in enumerate(column):
            moved[i] += sign * (x - ratio * w) / total
            share[i] += w / total / len(both)
    variance = sum(d**2 / (1 - p) for d, p in zip(moved, share, strict=True))
    # The form e'De of residuals whose covariance is diag(1/p) - 1: twice its mean^2 over its variance (Satterthwaite).
    weight = [p**2 / (1 - p) for p in share]
    covariance = [[(1 / share[i] if i == j else 0) - 1 for j in range(n)] for i in range(n)]
    mean = sum(weight[i] * covariance[i][i] for i in range(n))
    square = sum(weight[i] * weight[j] * covariance[i][j] ** 2 for i in range(n) for j in range(n))
    return sum(ratios), math.sqrt(variance), mean**2 / square
