"""Naive oracle: the context reach of a corpus, token by token, in Python floats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from longlens.scoring.scores import TokenScores
from tests.reference.metrics import estimate


class Gains(NamedTuple):
    """Of one set of tokens: a list of `[gain at each K, …, gain under the whole context]` a document, and its size."""

    documents: list[list[list[float]]]
    num_characters: int

    def sums(self, column: int) -> list[tuple[float, float]]:
        return [(sum(token[column] for token in tokens), len(tokens)) for tokens in self.documents]

    def mean(self, column: int, drawn: Sequence[int]) -> float:
        values = [token[column] for number in drawn for token in self.documents[number]]
        return sum(values) / len(values)


def gains(
    rows: Sequence[TokenScores], contexts: Sequence[int], key: Mapping[str, Sequence[tuple[int, int]]] | None = None
) -> Gains:
    """The gains of every token that counts; with `key`, those inside one run of characters."""
    documents, characters = [], set()
    for row in sorted(rows, key=lambda row: row.id):
        tokens = []
        for i, (start, end) in enumerate(row.char_spans.tolist()):
            scores = [float(next(p for s, p in sorted(row.short.items()) if s.context == k)[i]) for k in contexts]
            scores.append(float(row.long_logprobs[i]))
            if i < contexts[-1] or not all(math.isfinite(score) for score in scores):
                continue
            if key is not None and not any(s <= start < end <= e for s, e in key[row.id]):
                continue
            tokens.append([score - scores[0] for score in scores])
            characters |= {(row.id, place) for place in range(start, end)}
        documents.append(tokens)
    return Gains(documents, len(characters))


def isotonic(values: Sequence[float]) -> list[float]:
    """The max-min formula: the largest, over where a block may begin, of the smallest mean it can have."""
    n = len(values)
    return [max(min(sum(values[j : k + 1]) / (k + 1 - j) for k in range(i, n)) for j in range(i + 1)) for i in range(n)]


def effective_reach(contexts: Sequence[int], fit: Sequence[float]) -> float | None:
    """The smallest K, on a fine walk along each step, at which the line through the fit is at 0.9 of its end."""
    if fit[-1] <= 0:
        return None
    parts = 20_000
    for low, high, before, after in zip(contexts, contexts[1:], fit, fit[1:], strict=False):
        if after < 0.9 * fit[-1]:
            continue
        for part in range(parts + 1):
            if before + (after - before) * part / parts >= 0.9 * fit[-1] - 1e-12:
                return math.exp(math.log(low) + (math.log(high) - math.log(low)) * part / parts)
    return None


def drawn(
    sums: Sequence[Sequence[tuple[float, float]]], contexts: Sequence[int], seed: int, resamples: int
) -> dict[str, list[float]]:
    """`max_gain` and, where there is a gain, `reach` of gains that are moved by normal and chi-squared numbers.

    Args:
        sums: For each K, of each document the sum of its gains and its tokens.
        contexts: K.
        seed: Of the numbers.
        resamples: How many.
    """
    rng = np.random.default_rng(seed)
    n = len(sums[0])
    normal = rng.normal(size=(n, resamples)).tolist()
    total = sum(tokens for _, tokens in sums[0])
    freedom = estimate(sums[-1])[2]
    chi2 = rng.chisquare(freedom, resamples).tolist()
    values: dict[str, list[float]] = {"max_gain": [], "reach": []}
    for number in range(resamples):
        curve = []
        for documents in sums:
            mean = sum(gain for gain, _ in documents) / total
            moved = sum(
                (gain - mean * tokens) / total / math.sqrt(1 - tokens / total) * normal[i][number]
                for i, (gain, tokens) in enumerate(documents)
            )
            curve.append(mean + moved / math.sqrt(chi2[number] / freedom))
        fit = isotonic(curve)
        values["max_gain"].append(fit[-1])
        reached = effective_reach(contexts, fit)
        if reached is not None:
            values["reach"].append(reached)
    return values
