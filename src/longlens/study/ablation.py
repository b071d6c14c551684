"""The ablations of LongPPL from stored scores alone: thresholds, evaluator, short context, weights, documents.

No model is run, and every document is read once. Of each model there are

======================  ===============================================================================================
ppl                     all tokens alike (eq. 1); ppl_from_context: tokens from K on
ppl_ngram               tokens of re-occurred n-grams (appendix B.7, table 11)
longppl                 key tokens at each alpha and beta (eq. 4, table 2)
longppl_no_lcl          key tokens by LSD alone, at each alpha (appendix B.2, figure 9)
longppl_soft            all tokens, weighted by ``min(exp(LSD), gamma)`` (eq. 7, table 1)
longppl_self            key tokens that the model itself selects (appendix B.2, table 6)
bits_per_character      as ppl, and key_bits_per_character as longppl, comparable across tokenizers
======================  ===============================================================================================

with every evaluator, at each K and d that it was scored at. Next to each is how far it ranks the models as LongPPL
does; where scores of benchmarks are given, how it correlates with them; and how many documents its ranking needs
(`longlens.study.ranking`). The evaluators are compared by the key tokens that they select (`longlens.study.agreement`)
and by the rankings that these give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longlens.errors import UserError
from longlens.metrics.uncertainty import Interval
from longlens.progress import Progress
from longlens.scoring.scores import Scores, same_run
from longlens.settings.options import ALPHA, BETA, KeyRule, check_thresholds
from longlens.study.ablation_sums import AblationSums, MetricSums, Setting
from longlens.study.agreement import KeyAgreement
from longlens.study.correlation import Correlation, correlate_columns
from longlens.study.ranking import (
    DRAWS,
    MIN_DOCUMENTS,
    SettledPairs,
    SubsetAgreement,
    agreement_interval,
    kendall_tau,
    power_curve,
    settled_pairs,
    stable_from,
)
from longlens.tables import Tabular, plain

SCHEMA_VERSION = 1
# Table 2 of the paper has alpha 1 and 2, and beta -2 and -1; figure 9 has no beta.
ALPHAS = (0.5, 1.0, 2.0, 3.0)
BETAS = (-math.inf, -4.0, -2.0, -1.0)
"""-inf means no second criterion."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric of every model; what does not exist is None.

    Attributes:
        metric: Its name, see the module.
        setting: What selects or weights tokens; None if nothing does. Of `longppl_self` its evaluator is "self".
        alpha: Threshold of the long-short difference, nats; None if there is none.
        beta: Threshold of the long-context likelihood, nats; None if there is none.
        values: One for each model: a perplexity, or bits.
        intervals: 95 % intervals of them over documents.
        num_tokens: Tokens that each value is about.
        kendall: tau-b of the ranking of the models with that by LongPPL (first setting, its alpha and beta).
        kendall_interval: 95 % interval of it, over documents.
        correlations: By benchmark.
    """

    metric: str
    setting: Setting | None
    alpha: float | None
    beta: float | None
    values: Sequence[float | None]
    intervals: Sequence[Interval | None]
    num_tokens: Sequence[int]
    kendall: float | None
    kendall_interval: Interval | None
    correlations: Mapping[str, Correlation] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How many documents the ranking of the models by a metric needs.

    Attributes:
        metric: Its name.
        setting: As in `Measure`.
        alpha: As in `Measure`.
        beta: As in `Measure`.
        curve: Agreement with a ranking by other documents, by the number of documents.
        stable_from: Documents on the curve from which on the mean tau-b is 0.9 or more; None if there are none.
        pairs: Which pairs of models all documents order beyond doubt, and how many documents would order the others.
    """

    metric: str
    setting: Setting | None
    alpha: float | None
    beta: float | None
    curve: Sequence[SubsetAgreement]
    stable_from: int | None
    pairs: SettledPairs


@dataclass(frozen=True, kw_only=True)
class EvaluatorAgreement:
    """Two evaluators, or one at two K, on the same documents.

    Attributes:
        one: The first.
        other: The second.
        is_own: Whether the second is a model that selects for itself, as in `longppl_self`, and ranks no others.
        keys: Of their key tokens.
        kendall: tau-b of the rankings of the models by their LongPPL; None if the second ranks none.
        kendall_interval: 95 % interval of it, over documents.
    """

    one: Setting
    other: Setting
    is_own: bool
    keys: KeyAgreement
    kendall: float | None
    kendall_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Ablation(Tabular):
    """The ablations. As a table: a row for each metric and model.

    Attributes:
        models: Names of the models.
        settings: Evaluators with their K and d; rankings are compared with that of the first.
        alpha: Threshold of the long-short difference where the grid has no other, nats.
        beta: Threshold of the long-context likelihood of these keys.
        num_documents: Documents, the same for all.
        benchmarks: Scores by benchmark, one for each model; None if there is none.
        measures: Every metric of every model.
        stability: How many documents rankings need.
        agreement: Agreement of each two settings; then of the first with each model's own selection.
        warnings: What has to be known before a number is relied on, a sentence each.
    """

    models: Sequence[str]
    settings: Sequence[Setting]
    alpha: float
    beta: float
    num_documents: int
    benchmarks: Mapping[str, Sequence[float | None]]
    measures: Sequence[Measure]
    stability: Sequence[Stability]
    agreement: Sequence[EvaluatorAgreement]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """The object that ``longlens study ablate --json`` prints; what does not exist is None, nothing is NaN."""
        return {"schema_version": SCHEMA_VERSION, **plain(self)}

    def _columns(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for measure in self.measures:
            for place, model in enumerate(self.models):
                low, high = measure.intervals[place] or (None, None)
                row = {
                    "metric": measure.metric,
                    "evaluator": measure.setting and measure.setting.evaluator,
                    "context": measure.setting and measure.setting.context,
                    "stride": measure.setting and measure.setting.stride,
                    "alpha": measure.alpha,
                    "beta": measure.beta,
                    "model": model,
                    "value": measure.values[place],
                    "low": low,
                    "high": high,
                    "num_tokens": measure.num_tokens[place],
                }
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
        return columns


def ablate(
    runs: Sequence[Scores],
    evaluators: Sequence[Scores],
    *,
    benchmarks: Mapping[str, Mapping[str, float]] | None = None,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
    rule: KeyRule | None = None,
    self_evaluation: bool | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ablation:
    """The ablations of LongPPL over several models, see the module.

    Args:
        runs: Scores of the models, on the same documents.
        evaluators: Scores of evaluators, on the same texts; more documents are fine.
        benchmarks: By the name of a benchmark, scores by the names of the models (`longlens.scoring.scores.names_of`).
        alphas: Alphas of the grid, nats.
        betas: Betas of the grid, nats; -inf, which is always included, means no second criterion.
        rule: ``alpha``, ``beta`` (which join the grid) and ``gamma`` where the grid has no other; ``context`` and
            ``stride`` leave only these of those that were scored.
        self_evaluation: Whether each model is its own evaluator as well, which needs its short-context scores at the K
            and d of the first setting. None: those models that have them, and a warning names the others.
        draws: Number of draws of documents, for each power curve and each interval of a tau.
        seed: Seed of the draws.
        progress: Shows documents.

    Raises:
        UserError: No runs or evaluators; different documents or texts; documents that an evaluator lacks; an evaluator
            without (such) short-context scores; thresholds that are not numbers; scores of other models; a model
            without short-context scores where `self_evaluation` is asked for.
    """
    if not runs or not evaluators:
        raise UserError("an ablation needs scores of models and of an evaluator: give both, from longlens score DOCS")
    rule = rule or KeyRule()
    if rule.lcl is not None:
        raise UserError("an ablation always covers both, with and without LCL: leave `use_lcl` out")
    if draws < 1:
        raise UserError(f"`draws` is {draws}, expected 1 or more")
    alpha, beta = ALPHA if rule.alpha is None else rule.alpha, BETA if rule.beta is None else rule.beta
    for threshold in alphas:
        check_thresholds(threshold, BETA)
    for threshold in betas:
        check_thresholds(ALPHA, BETA if threshold == -math.inf else threshold)
    grid = sorted({*alphas, alpha}), sorted({*betas, beta, -math.inf})
    evaluators = [next((run for run in runs if same_run(run, one)), one) for one in evaluators]
    sums = AblationSums(runs, evaluators, rule, grid, self_evaluation)
    scores = _columns_of(benchmarks or {}, sums.models)
    sums.read(progress or Progress())
    metrics = sums.metrics(alpha, beta)
    longppl = {
        each.setting: each
        for each in metrics
        if each.setting is not None and (each.metric, each.alpha, each.beta) == ("longppl", alpha, beta)
    }
    base = longppl[sums.settings[0]]
    measures = [_measure(each, base, scores, draws, seed) for each in metrics]
    default = {(alpha, beta), (alpha, None), (None, None)}
    return Ablation(
        models=sums.models,
        settings=sums.settings,
        alpha=alpha,
        beta=beta,
        num_documents=len(runs[0]),
        benchmarks=scores,
        measures=measures,
        stability=[
            _stability(each, draws, seed)
            for each in metrics
            if len(runs) > 1 and len(runs[0]) >= MIN_DOCUMENTS and (each.alpha, each.beta) in default
        ],
        agreement=[
            EvaluatorAgreement(
                one=one,
                other=other,
                is_own=is_own,
                keys=keys,
                **_kendall(longppl[one], None if is_own else longppl[other], draws=draws, seed=seed),
            )
            for one, other, is_own, keys in sums.overlaps()
        ],
        warnings=[*sums.warnings(), *_notes(measures, len(runs), len(runs[0]))],
    )


def _measure(
    sums: MetricSums, base: MetricSums, scores: Mapping[str, Sequence[float | None]], draws: int, seed: int
) -> Measure:
    values = sums.values
    return Measure(
        metric=sums.metric,
        setting=sums.setting,
        alpha=sums.alpha,
        beta=sums.beta,
        values=values,
        intervals=sums.intervals,
        num_tokens=sums.num_tokens,
        **_kendall(sums, base, draws=draws, seed=seed),
        correlations={name: correlate_columns(values, column, seed=seed) for name, column in scores.items()},
    )


def _kendall(one: MetricSums, other: MetricSums | None, *, draws: int, seed: int) -> dict[str, Any]:
    tau = math.nan if other is None else float(kendall_tau(one.nats, other.nats))
    if other is None or math.isnan(tau):
        return {"kendall": None, "kendall_interval": None}
    return {"kendall": tau, "kendall_interval": agreement_interval(one.sums, other.sums, draws=draws, seed=seed)}


def _stability(sums: MetricSums, draws: int, seed: int) -> Stability:
    curve = power_curve(sums.sums, draws=draws, seed=seed)
    return Stability(
        metric=sums.metric,
        setting=sums.setting,
        alpha=sums.alpha,
        beta=sums.beta,
        curve=curve,
        stable_from=stable_from(curve),
        pairs=settled_pairs(sums.sums, sums.num_tokens),
    )


def _columns_of(benchmarks: Mapping[str, Mapping[str, float]], models: Sequence[str]) -> dict[str, list[float | None]]:
    """Scores by benchmark, one for each model.

    Raises:
        UserError: Scores of a model that is not there.
    """
    for benchmark, scores in benchmarks.items():
        unknown = [name for name in scores if name not in models]
        if unknown:
            raise UserError(f"{benchmark} has a score of {unknown[0]!r}; the models are {', '.join(models)}")
    return {benchmark: [scores.get(name) for name in models] for benchmark, scores in benchmarks.items()}


def _notes(measures: Sequence[Measure], num_models: int, num_documents: int) -> list[str]:
    if num_models < 2:
        return ["1 model, and rankings need two or more: there is no agreement of rankings and no power curve"]
    notes = []
    if num_documents < MIN_DOCUMENTS:
        notes.append(f"{num_documents} documents, and a power curve needs {MIN_DOCUMENTS} or more")
    for measure in measures:
        number = sum(value is None for value in measure.values)
        if measure.metric in ("longppl", "longppl_no_lcl") and number and measure.setting is not None:
            thresholds = f"alpha {measure.alpha:g}" + ("" if measure.beta is None else f", beta {measure.beta:g}")
            notes.append(
                f"{number} of {num_models} models have no LongPPL at {thresholds} with {measure.setting.evaluator}, "
                f"K={measure.setting.context}, and are in no ranking there"
            )
    return notes
