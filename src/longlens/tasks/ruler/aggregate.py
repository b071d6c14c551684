"""RULER's summaries of scores: over tasks, over lengths, and the effective length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longlens.errors import UserError

# README, "only half of them can effectively handle sequence length of 32K by exceeding a qualitative threshold,
# Llama-2-7b performance at 4K (85.6%)"; paper, section 4.
THRESHOLD = 85.6


def mean_over_tasks(scores: Mapping[str, float]) -> float:
    """The unweighted mean of the tasks' scores at one length.

    Raises:
        UserError: There are none.
    """
    return _mean(list(scores.values()))


def weighted_average(scores: Mapping[int, float], *, increasing: bool) -> float:
    """The mean over lengths with weights 1, 2, …, n in the order of the lengths, or n, …, 2, 1.

    ``wAvg. (inc)`` of RULER's table stands for use at long lengths, ``wAvg. (dec)`` for use at short ones; its ``Avg.``
    is the plain mean.

    Args:
        scores: Score by length, in percent.
        increasing: Whether longer lengths weigh more.

    Raises:
        UserError: There are none.
    """
    ordered = [scores[length] for length in sorted(scores, reverse=not increasing)]
    _mean(ordered)
    weights = range(1, len(ordered) + 1)
    return sum(weight * score for weight, score in zip(weights, ordered, strict=True)) / sum(weights)


def effective_length(scores: Mapping[int, float], threshold: float = THRESHOLD) -> int | None:
    """The largest length up to which all scores are above a threshold; None if the first is not.

    Args:
        scores: Score by length, in percent.
        threshold: RULER's, unless given.

    Raises:
        UserError: There are none.
    """
    _mean(list(scores.values()))
    longest = None
    for length in sorted(scores):
        if not scores[length] > threshold:
            break
        longest = length
    return longest


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise UserError("no scores to sum up; give at least one")
    return sum(values) / len(values)
