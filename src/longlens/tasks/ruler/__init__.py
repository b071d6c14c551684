"""Provides RULER's 13 tasks (needles, variable tracking, common and frequent words, questions) and aggregates scores.

Paper: Hsieh et al., RULER: What's the Real Context Size of Your Long-Context Language Models? arXiv 2404.06654.
Prompts, settings and metrics: github.com/NVIDIA/RULER at c3f5e3b, ``scripts/synthetic.yaml`` and
``scripts/data/synthetic/``, Apache-2.0. The generators are those of longlens. Differences in all tasks:

- Each sample has its own random numbers and is fitted to its own budget. RULER has one random stream for all samples
  and one number of units, found with one example and lowered by 5 to 500 if a sample does not fit.
- Needles, words and documents are in another order in each sample; RULER permutes all samples in the same way.
- Keys and values are all different within a sample.
- The BOS that a tokenizer adds before a text counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from longlens.errors import UserError
from longlens.tasks.base import Task
from longlens.tasks.ruler.needles import (
    NUMBERS,
    UUIDS,
    WORDS,
    DistractorNeedles,
    Kind,
    Needles,
    NoiseNeedles,
    ProseNeedles,
)
from longlens.tasks.ruler.qa import HOTPOTQA, SQUAD, QuestionAnswering, read_hotpotqa, read_squad
from longlens.tasks.ruler.variables import VariableTracking
from longlens.tasks.ruler.words import CommonWords, FrequentWords

# README, "only half of them can effectively handle sequence length of 32K by exceeding a qualitative threshold,
# Llama-2-7b performance at 4K (85.6%)"; paper, section 4.
THRESHOLD = 85.6


def _needles(
    kind: type[Needles], keys: int = 1, values: int = 1, queries: int = 1, of: Kind = WORDS, to: Kind = NUMBERS
) -> Callable[..., Task]:
    return partial(kind, keys=keys, values=values, queries=queries, key_kind=of, value_kind=to)


RULER: dict[str, Callable[..., Task]] = {  # scripts/synthetic.yaml
    "niah_single_1": _needles(NoiseNeedles),
    "niah_single_2": _needles(ProseNeedles),
    "niah_single_3": _needles(ProseNeedles, to=UUIDS),
    "niah_multikey_1": _needles(ProseNeedles, keys=4),
    "niah_multikey_2": _needles(DistractorNeedles),
    "niah_multikey_3": _needles(DistractorNeedles, of=UUIDS, to=UUIDS),
    "niah_multivalue": _needles(ProseNeedles, values=4),
    "niah_multiquery": _needles(ProseNeedles, queries=4),
    "vt": VariableTracking,
    "cwe": CommonWords,
    "fwe": FrequentWords,
    "qa_1": partial(QuestionAnswering, file=SQUAD, read=read_squad),
    "qa_2": partial(QuestionAnswering, file=HOTPOTQA, read=read_hotpotqa),
}
"""RULER's 13 tasks, in its order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RulerSummary:
    """A row of RULER's table; all scores in percent.

    Attributes:
        means: Mean over the 13 tasks by length; None at a length at which a task has no score.
        average: Average of the means; None if a mean is None.
        weighted_increasing: ``wAvg. (inc)``; None if a mean is None.
        weighted_decreasing: ``wAvg. (dec)``; None if a mean is None.
        effective_length: As returned by `effective_length`; also None if it depends on a mean that is None.
        threshold: The threshold of `effective_length`.
        gaps: Tasks without a score, by length; only lengths with gaps.
    """

    means: Mapping[int, float | None]
    average: float | None
    weighted_increasing: float | None
    weighted_decreasing: float | None
    effective_length: int | None
    threshold: float
    gaps: Mapping[int, tuple[str, ...]]


def summarize(
    scores: Mapping[int, Mapping[str, float | None]], *, threshold: float = THRESHOLD, allow_gaps: bool = False
) -> RulerSummary:
    """Computes all summaries of the scores by length and task.

    A mean is over all 13 tasks or is None: a mean over fewer would be another metric under the same name.

    Args:
        scores: By length, then by task; in percent, None if missing.
        threshold: RULER's, by default.
        allow_gaps: Whether tasks may be missing at a length; the summary then lists them.

    Raises:
        UserError: There are no scores, a score is not from 0 to 100, a task is not one of the 13, or a task is missing
            and gaps are not allowed.
    """
    found = {length: _scored(length, scores[length]) for length in sorted(scores)}
    if not found:
        raise UserError("no scores to aggregate; pass at least one length")
    missing = {length: tuple(task for task in RULER if task not in own) for length, own in found.items()}
    gaps = {length: tasks for length, tasks in missing.items() if tasks}
    if gaps and not allow_gaps:
        named = "; ".join(f"{', '.join(tasks)} at length {length}" for length, tasks in gaps.items())
        raise UserError(
            f"RULER's mean is over {len(RULER)} tasks, but {named} has no score: run the missing tasks, or pass "
            "`allow_gaps=True` for a summary without these means"
        )
    means = {length: None if length in gaps else mean_over_tasks(own) for length, own in found.items()}
    whole = {length: mean for length, mean in means.items() if mean is not None}
    before_gap = {length: mean for length, mean in whole.items() if not gaps or length < min(gaps)}
    reached = effective_length(before_gap, threshold) if before_gap else None
    depends_on_gap = bool(gaps) and reached == max(before_gap, default=None)
    return RulerSummary(
        means=means,
        average=None if gaps else _mean(list(whole.values())),
        weighted_increasing=None if gaps else weighted_average(whole, increasing=True),
        weighted_decreasing=None if gaps else weighted_average(whole, increasing=False),
        effective_length=None if depends_on_gap else reached,
        threshold=threshold,
        gaps=gaps,
    )


def _scored(length: int, scores: Mapping[str, float | None]) -> dict[str, float]:
    """Checks the scores and returns those that are not None."""
    for task, score in scores.items():
        if task not in RULER:
            raise UserError(f"{task} is not a task of RULER, so not part of its mean; expected {', '.join(RULER)}")
        if score is not None and not 0 <= score <= 100:
            raise UserError(f"score={score} of {task} at length {length}; expected percent, 0 to 100")
    return {task: score for task, score in scores.items() if score is not None}


def mean_over_tasks(scores: Mapping[str, float]) -> float:
    """The unweighted mean of the tasks' scores at one length.

    Raises:
        UserError: The list of scores is empty.
    """
    return _mean(list(scores.values()))


def weighted_average(scores: Mapping[int, float], *, increasing: bool) -> float:
    """The mean over lengths with weights 1, 2, …, n in the order of the lengths, or n, …, 2, 1.

    In RULER's table, ``wAvg. (inc)`` gives long lengths more weight, ``wAvg. (dec)`` short ones; ``Avg.`` is the plain
    mean.

    Args:
        scores: Score by length, in percent.
        increasing: Whether longer lengths have more weight.

    Raises:
        UserError: The list of scores is empty.
    """
    ordered = [scores[length] for length in sorted(scores, reverse=not increasing)]
    _mean(ordered)
    weights = range(1, len(ordered) + 1)
    return sum(weight * score for weight, score in zip(weights, ordered, strict=True)) / sum(weights)


def effective_length(scores: Mapping[int, float], threshold: float = THRESHOLD) -> int | None:
    """The largest length up to which all scores are above a threshold; None if the first is not.

    Args:
        scores: Score by length, in percent.
        threshold: RULER's, by default.

    Raises:
        UserError: The list of scores is empty.
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
        raise UserError("no scores to aggregate; pass at least one")
    return sum(values) / len(values)
