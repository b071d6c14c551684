"""Naive oracle: each metric of an ablation for one model, from its rows and the evaluator's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from longlens.scoring.scores import TokenScores
from tests.reference import metrics, thresholds
from tests.reference.keytokens import characters


def values(
    rows: Sequence[TokenScores], evaluated: Sequence[TokenScores], alpha: float, beta: float, gamma: float
) -> dict[str, float]:
    """By metric; `longppl_no_lcl` too."""
    context = evaluated[0].selected.context
    keys = thresholds.key_logprobs(rows, evaluated, alpha, beta)
    logprobs = [[p for p in row.long_logprobs.tolist() if not math.isnan(p)] for row in rows]
    spans = [
        [span for span, p in zip(row.char_spans.tolist(), row.long_logprobs.tolist(), strict=True) if not math.isnan(p)]
        for row in rows
    ]
    late = [p for row in rows for p in row.long_logprobs.tolist()[context:] if not math.isnan(p)]
    return {
        "ppl": metrics.perplexity(rows),
        "bits_per_character": -sum(map(sum, logprobs)) / math.log(2) / sum(s[-1][1] - s[0][0] for s in spans),
        "ppl_from_context": math.exp(-sum(late) / len(late)),
        "ppl_ngram": ngram(rows),
        "longppl": thresholds.longppl(keys),
        "longppl_no_lcl": thresholds.longppl(thresholds.key_logprobs(rows, evaluated, alpha, -math.inf)),
        "longppl_soft": metrics.longppl_soft(rows, evaluated, gamma),
        "key_bits_per_character": -sum(keys) / math.log(2) / key_characters(rows, evaluated, alpha, beta)
        if keys
        else math.nan,
    }


def ngram(rows: Sequence[TokenScores]) -> float:
    """Tokens that share a character with a word of a 3-gram that was there before."""
    found = []
    for row in rows:
        again = metrics.reoccurred_words(row.text, 3)
        places, start = [], 0
        for word in row.text.split():
            start = row.text.index(word, start)
            places.append(set(range(start, start + len(word))))
            start += len(word)
        text = set().union(*(place for place, is_again in zip(places, again, strict=True) if is_again))
        for span, p in zip(row.char_spans.tolist(), row.long_logprobs.tolist(), strict=True):
            if characters(span) & text and not math.isnan(p):
                found.append(p)
    return math.exp(-sum(found) / len(found))


def key_characters(rows: Sequence[TokenScores], evaluated: Sequence[TokenScores], alpha: float, beta: float) -> int:
    number = 0
    for row, other in zip(rows, evaluated, strict=True):
        text: set[int] = set()
        for span, lsd, lcl in zip(other.char_spans.tolist(), other.lsd.tolist(), other.lcl.tolist(), strict=True):
            if lsd > alpha and lcl > beta:
                text |= characters(span)
        covered: set[int] = set()
        for span, p in zip(row.char_spans.tolist(), row.long_logprobs.tolist(), strict=True):
            if characters(span) and characters(span) <= text and not math.isnan(p):
                covered |= characters(span)
        number += len(covered)
    return number
