"""Naive oracle: LongPPL at each pair of thresholds, with sets of key characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from longlens.scoring.scores import TokenScores
from tests.reference.keytokens import characters


def key_logprobs(
    rows: Sequence[TokenScores], evaluated: Sequence[TokenScores], alpha: float, beta: float
) -> list[float]:
    """The long scores of the key tokens that have one; a beta of -inf is no second criterion."""
    found = []
    for row, other in zip(rows, evaluated, strict=True):
        text: set[int] = set()
        for span, lsd, lcl in zip(other.char_spans.tolist(), other.lsd.tolist(), other.lcl.tolist(), strict=True):
            if lsd > alpha and (beta == -math.inf or lcl > beta):
                text |= characters(span)
        for span, logprob in zip(row.char_spans.tolist(), row.long_logprobs.tolist(), strict=True):
            if characters(span) and characters(span) <= text and not math.isnan(logprob):
                found.append(logprob)
    return found


def longppl(logprobs: Sequence[float]) -> float:
    """NaN where there is none, or where it is infinite."""
    if not logprobs or -math.inf in logprobs:
        return math.nan
    return math.exp(-math.fsum(logprobs) / len(logprobs))
