"""Naive oracles: classes and bins token by token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from longlens.scoring.scores import TokenScores
from tests.reference.keytokens import Span, tokens_in_runs, tokens_touching


def class_counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    bounds = [-math.inf, *edges, math.inf]
    counts = [0] * (len(edges) + 1)
    for value in values:
        for j in range(len(counts)):
            if bounds[j] <= value < bounds[j + 1] or value == math.inf == bounds[j + 1]:
                counts[j] += 1
    return counts


def lsd_and_lcl(
    row: TokenScores, floor: float, answer: Sequence[Span] | None = None
) -> tuple[list[float], list[float]]:
    """LSDs, and LCLs of the tokens with an LSD above the floor; with an answer of the tokens that touch it only."""
    spans = row.char_spans.tolist()
    asked = [True] * len(spans) if answer is None else tokens_touching(spans, answer)
    pairs = [
        (long - short, long)
        for long, short, wanted in zip(row.long_logprobs.tolist(), row.short_logprobs.tolist(), asked, strict=True)
        if wanted and not math.isnan(long - short)
    ]
    return [lsd for lsd, _ in pairs], [lcl for lsd, lcl in pairs if lsd > floor]


def edges_of(longest: int, cell: int, most: int) -> list[int]:
    """Bins of cell, 2 cell, 4 cell, … tokens; the last one ends with the last cell."""
    cells, width = math.ceil(longest / cell), 1
    while math.ceil(cells / width) > most:
        width *= 2
    return [cell * place for place in [*range(0, cells, width), cells]]


def bins(
    rows: Sequence[TokenScores], edges: Sequence[int], runs: Sequence[Sequence[Span]] | None = None
) -> dict[str, list[float | None]]:
    """``num_tokens``, ``long_logprob``, ``short_logprob``, ``long_of_short`` and ``key_share``; None is no token."""

    def mean(values: list[float]) -> float | None:
        return math.fsum(values) / len(values) if values else None

    found: dict[str, list[float | None]] = {}
    for start, end in itertools.pairwise(edges):
        scored, both, keys = [], [], []
        for number, row in enumerate(rows):
            key = tokens_in_runs(row.char_spans.tolist(), runs[number]) if runs else [False] * len(row.token_ids)
            for i in range(start, min(end, len(row.token_ids))):
                long = float(row.long_logprobs[i])
                short = float(row.short_logprobs[i]) if row.short else math.nan
                if not math.isnan(long):
                    scored.append(long)
                    keys.append(float(key[i]))
                if math.isfinite(long) and math.isfinite(short):
                    both.append((long, short))
        values = {
            "num_tokens": len(scored),
            "long_logprob": mean([long for long in scored if math.isfinite(long)]),
            "short_logprob": mean([short for _, short in both]),
            "long_of_short": mean([long for long, _ in both]),
            "key_share": mean(keys),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found
