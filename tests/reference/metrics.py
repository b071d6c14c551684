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
