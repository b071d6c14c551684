"""Everything that a report says of a corpus in numbers: what the page and the figures draw, and nothing of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.selection import KeySource, select_key_tokens
from longlens.metrics.comparison import PairComparison, compare
from longlens.metrics.context_reach import ReachResult, reach
from longlens.metrics.corpus import AnswerSpans
from longlens.metrics.gains import MIN_CONTEXTS
from longlens.metrics.longppl import PerplexityResult, perplexity
from longlens.metrics.score_distributions import Distributions, distributions
from longlens.metrics.thresholds import ThresholdTable, threshold_table
from longlens.scoring.scores import Scores, ShortContext, names_of, same_run
from longlens.settings.options import ALPHA, BETA

SCHEMA_VERSION = 1
STEP = 0.1
"""Nats between two positions of a threshold."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run in the report.

    Attributes:
        name: What it is called: its model, and its folder as well where two runs are of models of one name.
        scores: Its scores.
        short: The short context that LSD is of here: that of the key tokens, or where it has not that, its own.
        distributions: Over all its documents.
        result: Its perplexities; None for an evaluator that is not compared itself.
        reach: How far back its context reaches; None where fewer than three K were scored.
        thresholds: Its LongPPL at every position of the two sliders; None without evaluator scores, or for an
            evaluator that is not compared itself.
    """

    name: str
    scores: Scores
    short: ShortContext | None
    distributions: Distributions
    result: PerplexityResult | None
    reach: ReachResult | None
    thresholds: ThresholdTable | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a report shows.

    Attributes:
        runs: The compared runs in their order, the baseline first; then the evaluator where it is not one of them.
        evaluator: Which of the runs selects the key tokens; None where they came from a file, or there are none.
        keys: The key tokens at the thresholds of the report; None where there are none.
        pairs: Every other compared run against the baseline.
        benchmarks: By the name of a benchmark, the scores of runs by their names.
        notes: What has to be known before a number is relied on.
    """

    runs: Sequence[Run]
    evaluator: Run | None
    keys: KeySource | None
    pairs: Sequence[PairComparison]
    benchmarks: Mapping[str, Mapping[str, float]]
    notes: Sequence[str]

    @property
    def compared(self) -> Sequence[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result is not None]

    def to_json(self) -> dict[str, Any]:
        """The object that ``longlens report --json`` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "evaluator": None if self.keys is None else self.keys.settings["evaluator"],
            "results": [{"name": run.name, **run.result.to_json()} for run in self.runs if run.result is not None],
            "pairs": [pair.to_json() for pair in self.pairs],
            "reach": [{"name": run.name, **run.reach.to_json()} for run in self.runs if run.reach is not None],
            "distributions": [{"name": run.name, **run.distributions.to_json()} for run in self.runs],
            "benchmarks": {name: dict(scores) for name, scores in self.benchmarks.items()},
            "warnings": list(self.notes),
        }


def summarize_runs(
    runs: Sequence[Scores],
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    use_lcl: bool | None = None,
    context: int | None = None,
    stride: int | None = None,
    answers: AnswerSpans | None = None,
    benchmarks: Mapping[str, Mapping[str, float]] | None = None,
) -> Summary:
    """All numbers of a report, from stored scores; no model is run.

    Args:
        runs: Scores of one or more models on the same documents; the first is the baseline.
        evaluator_scores: Of the evaluator, which selects the key tokens. With neither these nor keys, the first run
            that has short-context scores is the evaluator, and a note says so.
        keys: As for `longlens.perplexity`, and so are all that follow.
        alpha: See there.
        beta: See there.
        gamma: See there.
        use_lcl: See there.
        context: See there.
        stride: See there.
        answers: See there; distributions are split by them too.
        benchmarks: By the name of a benchmark, scores by the names of runs (see `read_benchmarks`).

    Raises:
        UserError: No runs, or what `longlens.compare` refuses.
    """
    if not runs:
        raise UserError("no scores to report: score documents first, with longlens score DOCS --model M -o SCORES")
    notes = []
    if evaluator_scores is None and keys is None:
        evaluator_scores = next((run for run in runs if run.short_contexts), None)
        if evaluator_scores is not None:
            notes.append(
                f"no evaluator was named, so {evaluator_scores.manifest['model']['name']} selects the key tokens, the "
                "first run with short-context scores (--evaluator-scores names another)"
            )
    elif evaluator_scores is not None:
        # One object for one run, so that it is shown once.
        evaluator_scores = next((run for run in runs if same_run(run, evaluator_scores)), evaluator_scores)
    rule: dict[str, Any] = {"alpha": alpha, "beta": beta, "use_lcl": use_lcl}
    place: dict[str, Any] = {"context": context, "stride": stride}
    chosen = {"evaluator_scores": evaluator_scores, "keys": keys, "gamma": gamma, "answers": answers, **rule, **place}
    pairs: Sequence[PairComparison] = []
    if len(runs) > 1:
        found = compare(runs, **chosen)
        results, pairs = list(found.results), found.pairs
        notes += found.warnings
    else:
        results = [perplexity(runs[0], **chosen)]
        notes += results[0].warnings
    given_keys = keys
    if keys is None and evaluator_scores is not None:
        keys = select_key_tokens(evaluator_scores, **rule, **place)
    shown = [*runs]
    if evaluator_scores is not None and not any(run is evaluator_scores for run in runs):
        shown.append(evaluator_scores)
    reaches = _reaches(shown, evaluator_scores, given_keys, rule, notes)
    summarized = [
        Run(
            name=name,
            scores=run,
            short=(short := _short(run, keys)),
            distributions=distributions(run, keys=keys, short=short, answers=answers, name=name),
            result=result,
            reach=reached,
            thresholds=None
            if result is None or evaluator_scores is None
            else threshold_table(
                run,
                evaluator_scores,
                alphas=positions(ALPHA if alpha is None else alpha, 0.0, 8.0),
                betas=np.concatenate([[-np.inf], positions(BETA if beta is None else beta, -10.0, 0.0)]),
                **place,
            ),
        )
        for name, run, result, reached in zip(
            # the compared runs are called as in `compare` and in the files of benchmarks
            [*names_of(runs), *names_of(shown)[len(runs) :]],
            shown,
            [*results, *[None] * (len(shown) - len(runs))],
            reaches,
            strict=True,
        )
    ]
    return Summary(
        runs=summarized,
        evaluator=next((run for run in summarized if run.scores is evaluator_scores), None),
        keys=keys,
        pairs=pairs,
        benchmarks=benchmarks or {},
        notes=list(dict.fromkeys(notes)),
    )


def positions(value: float, low: float, high: float) -> npt.NDArray[np.float64]:
    """Where a slider can stand: ``value`` and every `STEP` below and above it, from ``low`` to ``high`` at least."""
    below = max(0, math.ceil((value - low) / STEP))
    above = max(0, math.ceil((high - value) / STEP))
    # rounded, so that a position is the number that a user writes: 2.1 and not 2.1000000000000001
    return np.array([round(value + step * STEP, 10) if step else value for step in range(-below, above + 1)])


def _short(run: Scores, keys: KeySource | None) -> ShortContext | None:
    """The short context of the key tokens; the run's own where it has not that, or there are none."""
    wanted = None if keys is None else ShortContext(keys.settings["context"], keys.settings["stride"])
    return next((short for short in run.short_contexts if short == wanted), run.selected)


def _reaches(
    runs: Sequence[Scores],
    evaluator: Scores | None,
    keys: KeySource | None,
    rule: Mapping[str, Any],
    notes: list[str],
) -> list[ReachResult | None]:
    """The reach of every run that can have one; why another has none goes into the notes."""
    reaches: list[ReachResult | None] = []
    for run in runs:
        contexts = {short.context for short in run.short_contexts}
        if len(contexts) < MIN_CONTEXTS:
            reaches.append(None)
            continue
        others = [other for other in (evaluator, *runs) if other is not None and other is not run]
        same = (other for other in others if {short.context for short in other.short_contexts} == contexts)
        selects = evaluator is not None and min(contexts) in {short.context for short in evaluator.short_contexts}
        try:
            selecting = {"evaluator_scores": evaluator, **rule} if selects else {"keys": keys}
            reached = reach(run, **selecting, reference_scores=next(same, None))
        except UserError as error:
            notes.append(f"no context reach of {run.manifest['model']['name']}: {error}")
            reaches.append(None)
        else:
            notes += reached.warnings
            reaches.append(reached)
    return reaches
