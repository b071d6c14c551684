"""Naive oracles: character by character, with sets and lists."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]


def characters(span: Span) -> set[int]:
    return set(range(*span))


def merge_spans(spans: Sequence[Span]) -> list[Span]:
    covered = set().union(*(characters(span) for span in spans)) if spans else set()
    runs: list[Span] = []
    for place in sorted(covered):
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def tokens_in_runs(spans: Sequence[Span], runs: Sequence[Span]) -> list[bool]:
    text = set().union(*(characters(run) for run in runs)) if runs else set()
    return [bool(characters(span)) and characters(span) <= text for span in spans]


def tokens_touching(spans: Sequence[Span], runs: Sequence[Span]) -> list[bool]:
    return [any(characters(span) & characters(run) for run in runs) for span in spans]


def carry_weights(source: Sequence[Span], weights: Sequence[float], target: Sequence[Span]) -> list[float]:
    def of_character(place: int) -> float:
        owners = [w for span, w in zip(source, weights, strict=True) if place in characters(span)]
        return sum(owners) / len(owners) if owners else 0.0

    return [sum(of_character(c) for c in range(s, e)) / (e - s) if e > s else 0.0 for s, e in target]


def published_key_losses(spans: Sequence[Span], runs: Sequence[Span]) -> list[int]:
    """Which losses the published package averages; loss i is that of token i + 1 there.

    Two fingers, one on the tokens and one on the runs: a token inside the run counts; of the others the token is
    passed when it begins before the run, and the run is passed otherwise.
    """
    losses, token, run = [], 0, 0
    while token < len(spans) and run < len(runs):
        (start, end), (low, high) = spans[token], runs[run]
        inside = low <= start and end <= high
        if inside:
            losses.append(token - 1)
        if inside or start < low:
            token += 1
        else:
            run += 1
    return losses
