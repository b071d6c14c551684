"""Computes all numbers of a report, which the page and the figures show; independent of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.selection import KeySource, warn_near_threshold
from longlens.metrics.comparison import PairComparison, check_same_ids, compare_results
from longlens.metrics.context_reach import ReachResult, reach_influence, reach_result
from longlens.metrics.corpus import AnswerSpans, Corpus, ScoredDocument, choose_influence, read_once
from longlens.metrics.cost import CostResult
from longlens.metrics.gains import MIN_CONTEXTS, GainSums
from longlens.metrics.longppl import PerplexityResult, PerplexitySums
from longlens.metrics.score_distributions import Distributions, DistributionSums, short_of
from longlens.metrics.thresholds import ThresholdSums, ThresholdTable
from longlens.report.documents import PageDocuments
from longlens.report.evidence import Evidence, EvidenceSums
from longlens.scoring.scores import Scores, ShortContext, TokenScores, names_of, same_run
from longlens.settings.options import ALPHA, BETA, KeyRule
from longlens.study.correlation import METRICS, BenchmarkScores, CorrelationTable, correlate_table

SCHEMA_VERSION = 1
STEP = 0.1
"""Step of the threshold sliders, in nats."""


@dataclass(frozen=True, kw_only=True)
class ReportRun:
    """One run in the report.

    Attributes:
        name: Display name: the model, with the directory if two runs are of models with the same name.
        scores: Its scores.
        short: The short context of LSD in this report: that of the key tokens, or the run's own if it lacks that one.
        distributions: Distributions over all its documents.
        result: Its perplexities; None for an evaluator that is not compared itself.
        reach: Its context reach; None if fewer than three K were scored.
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
class ReportSummary:
    """What a report shows.

    Attributes:
        runs: The compared runs in order, the baseline first; then the evaluator if it is not one of them.
        evaluator: The run that selects the key tokens; None if they came from a file, or there are none.
        keys: The key tokens at the thresholds of the report; None if there are none.
        pairs: Comparison of every other compared run with the baseline.
        benchmarks: By name of a benchmark, the scores of runs by their names.
        correlations: Correlations of LongPPL, PPL and related metrics with the benchmarks; None without benchmarks.
        notes: Caveats about the numbers.
        evidence: Single key tokens, earlier mentions of their words, and which kind of text gains.
        documents: Ids of the documents whose text the page shows; empty without a page.
        cost: Loss by cache policies or quantization, if the other runs are compared with the first in this respect.
    """

    runs: Sequence[ReportRun]
    evaluator: ReportRun | None
    keys: KeySource | None
    pairs: Sequence[PairComparison]
    benchmarks: Mapping[str, Mapping[str, float]]
    correlations: CorrelationTable | None
    notes: Sequence[str]
    evidence: Evidence
    documents: Sequence[str] = ()
    cost: CostResult | None = None

    @property
    def compared(self) -> Sequence[ReportRun]:
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
            "correlations": None if self.correlations is None else self.correlations.to_json(),
            "warnings": list(self.notes),
        }


def summarize_runs(
    runs: Sequence[Scores],
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    rule: KeyRule | None = None,
    answers: AnswerSpans | None = None,
    benchmarks: BenchmarkScores | Mapping[str, Mapping[str, float]] | None = None,
    cost: CostResult | None = None,
    by: str | None = None,
    page: PageDocuments | None = None,
) -> ReportSummary:
    """Computes all numbers of a report from stored scores; every document is read once, and no model is run.

    Args:
        runs: Scores of one or more models on the same documents; the first is the baseline.
        evaluator_scores: Scores of the evaluator, which selects the key tokens. Without these and keys, the first run
            that has short-context scores is the evaluator, and a note reports it.
        keys: Key tokens, instead of evaluator scores.
        rule: How the evaluator's scores select key tokens; the paper's thresholds by default.
        answers: ``[start, end)`` in characters of the answers, by document id; replaces the stored ones.
        benchmarks: By name of a benchmark, scores by the names of runs; or those of `join_benchmarks`.
        cost: Lost gain of the other runs relative to the first, see `longlens.cost`.
        by: A field of the documents' rows; the gain from long context is shown by its values.
        page: Collects the documents that a page shows.

    Raises:
        UserError: No runs were passed, no document has the field, or `longlens.compare` fails.
    """
    if not runs:
        raise UserError("no scores to report: score documents first, with longlens score DOCS")
    notes = []
    if evaluator_scores is None and keys is None:
        evaluator_scores = next((run for run in runs if run.short_contexts), None)
        if evaluator_scores is not None:
            notes.append(
                f"no evaluator was named, so {evaluator_scores.manifest['model']['name']} selects the key tokens, the "
                "first run with short-context scores (`evaluator_scores` names another)"
            )
    elif evaluator_scores is not None:
        # Use the same object for the same run, so that it is shown once.
        evaluator_scores = next((run for run in runs if same_run(run, evaluator_scores)), evaluator_scores)
    rule = rule or KeyRule()
    influence = choose_influence(evaluator_scores, keys, rule)
    shown = [*runs]
    if evaluator_scores is not None and not any(run is evaluator_scores for run in runs):
        shown.append(evaluator_scores)
    # the names of the compared runs are those of `compare` and of benchmark files
    names = [*names_of(runs), *names_of(shown)[len(runs) :]]
    corpora = [Corpus(run, influence, answers, name=name) for run, name in zip(shown, names, strict=True)]
    check_same_ids(corpora[: len(runs)])
    sums = [_RunSums(corpus, keys, rule, compared=place < len(runs)) for place, corpus in enumerate(corpora)]
    shorts = [each.short for each in sums]
    judge = next((place for place, run in enumerate(shown) if run is evaluator_scores), 0)
    evidence = EvidenceSums(judge, shorts, by)
    for *rows, evaluated in read_once(chain(runs[0].ids, shown[-1].ids), [*shown, evaluator_scores]):
        documents = [None if row is None else each.add(row, evaluated) for each, row in zip(sums, rows, strict=True)]
        if rows[0] is None:  # only the evaluator has this document
            continue
        evidence.add(documents)
        if page is not None:
            page.add(rows, shorts, None if keys is None else keys.get(rows[0].id), judge, documents[judge])
    results = [each.perplexity.result() for each in sums[: len(runs)]]
    sums[0].perplexity.warn()
    pairs: Sequence[PairComparison] = []
    if len(runs) > 1:
        comparison = compare_results(results, runs)
        pairs = comparison.pairs
        notes += comparison.warnings
    else:
        notes += results[0].warnings
    notes += [] if cost is None else cost.warnings
    reaches = [each.reach(sums, evaluator_scores, notes) for each in sums]
    summarized = [
        ReportRun(
            name=each.corpus.name,
            scores=each.corpus.scores,
            short=each.short,
            distributions=each.distributions.result(),
            result=result,
            reach=reached,
            thresholds=None if result is None or evaluator_scores is None else each.thresholds.result(),
        )
        for each, result, reached in zip(sums, [*results, *[None] * (len(shown) - len(runs))], reaches, strict=True)
    ]
    if isinstance(benchmarks, BenchmarkScores):
        notes += benchmarks.notes
    scores_of = benchmarks.scores if isinstance(benchmarks, BenchmarkScores) else benchmarks or {}
    return ReportSummary(
        runs=summarized,
        evaluator=next((run for run in summarized if run.scores is evaluator_scores), None),
        keys=influence.keys,
        pairs=pairs,
        benchmarks=scores_of,
        correlations=_correlations(results, names, scores_of) if scores_of else None,
        notes=list(dict.fromkeys(notes)),
        evidence=evidence.result(),
        documents=[] if page is None else page.ids,
        cost=cost,
    )


def _correlations(
    results: Sequence[PerplexityResult], names: Sequence[str], benchmarks: Mapping[str, Mapping[str, float]]
) -> CorrelationTable:
    """Computes correlations from the compared runs' results and scores; other runs have no result."""
    models = names[: len(results)]
    columns = {metric: [getattr(result, metric, None) for result in results] for metric in METRICS}
    return correlate_table(
        {metric: values for metric, values in columns.items() if any(value is not None for value in values)},
        {benchmark: [scores.get(name) for name in models] for benchmark, scores in benchmarks.items()},
        models=models,
    )


class _RunSums:
    """Accumulates all numbers of one run as its documents are read.

    Args:
        corpus: The run.
        keys: Key tokens that the caller passed.
        rule: Rule that selects key tokens if none were passed.
        compared: Whether it is one of the compared runs.
    """

    def __init__(self, corpus: Corpus, keys: KeySource | None, rule: KeyRule, *, compared: bool) -> None:
        self.corpus, self._compared = corpus, compared
        self.short = short_of(corpus.scores, corpus.influence)
        self.distributions = DistributionSums(corpus, self.short)
        self.perplexity = PerplexitySums(corpus)
        self.thresholds = ThresholdSums(
            positions(ALPHA if rule.alpha is None else rule.alpha, 0.0, 8.0),
            np.concatenate([[-np.inf], positions(BETA if rule.beta is None else rule.beta, -10.0, 0.0)]),
        )
        self._contexts = {short.context for short in corpus.scores.short_contexts}
        self._gains: GainSums | None = None
        self._no_reach: UserError | None = None
        self._own = False
        if len(self._contexts) >= MIN_CONTEXTS:
            evaluator = corpus.influence.evaluator
            at_smallest = KeyRule(alpha=rule.alpha, beta=rule.beta, lcl=rule.lcl)
            if evaluator is None or min(self._contexts) not in {short.context for short in evaluator.short_contexts}:
                evaluator, at_smallest = None, KeyRule()
            try:
                influence, self._own = reach_influence(corpus.scores, evaluator, keys, at_smallest)
                self._gains = GainSums(Corpus(corpus.scores, influence, corpus.answers))
            except UserError as error:
                self._no_reach = error

    def add(self, row: TokenScores, evaluated: TokenScores | None) -> ScoredDocument:
        """Adds a document."""
        document = self.corpus.document(row, evaluated)
        self.distributions.add(document)
        if self._compared:
            self.perplexity.add(document)
            if document.evaluated is not None and self.corpus.influence.evaluator is not None:
                self.thresholds.add(document)
        if self._gains is not None and self._no_reach is None:
            try:
                self._gains.add(row, evaluated)
            except UserError as error:
                self._no_reach = error
        return document

    def reach(self, sums: Sequence[_RunSums], evaluator: Scores | None, notes: list[str]) -> ReachResult | None:
        """Computes the run's context reach if possible; caveats, or why it is not possible, are added to the notes.

        Args:
            sums: Sums of all runs: the reference is the evaluator, or else the first run with the same contexts.
            evaluator: The evaluator.
            notes: List to which notes are appended.
        """
        if self._gains is None and self._no_reach is None:
            return None
        others = sorted(sums, key=lambda each: each.corpus.scores is not evaluator)
        reference = next((each for each in others if each is not self and each._contexts == self._contexts), None)
        try:
            for each in (self, reference):
                if each is not None and each._no_reach is not None:
                    raise each._no_reach
            assert self._gains is not None
            keys = self._gains.corpus.influence.keys
            if keys is not None:
                near = self._gains.num_near, self._gains.num_key_tokens
                warn_near_threshold(*near, keys.settings["dtype"])
            reached = reach_result(self._gains, None if reference is None else reference._gains, own=self._own)
        except UserError as error:
            notes.append(f"no context reach of {self.corpus.scores.manifest['model']['name']}: {error}")
            return None
        notes += reached.warnings
        return reached


def positions(value: float, low: float, high: float) -> npt.NDArray[np.float64]:
    """Returns slider positions: ``value`` and multiples of `STEP` around it, at least from ``low`` to ``high``."""
    below = max(0, math.ceil((value - low) / STEP))
    above = max(0, math.ceil((high - value) / STEP))
    # rounded, so that a position is the number that a user types: 2.1 and not 2.1000000000000001
    return np.array([round(value + step * STEP, 10) if step else value for step in range(-below, above + 1)])
