"""Computes ablations of LongPPL from stored scores: thresholds, evaluator, short context, weights, documents.

No model is run, and every document is read once. The metrics of each model are

======================  ===============================================================================================
ppl                     all tokens with equal weight (eq. 1); ppl_from_context: tokens from K on
ppl_ngram               tokens of re-occurring n-grams (appendix B.7, table 11)
longppl                 key tokens at each alpha and beta (eq. 4, table 2)
longppl_no_lcl          key tokens by LSD only, at each alpha (appendix B.2, figure 9)
longppl_soft            all tokens, weighted by ``min(exp(LSD), gamma)`` (eq. 7, table 1)
longppl_self            key tokens that the model itself selects (appendix B.2, table 6)
bits_per_character      as ppl, and key_bits_per_character as longppl, comparable across tokenizers
======================  ===============================================================================================

with every evaluator, at each K and d at which it was scored. Each metric comes with the agreement of its ranking of the
models with that of LongPPL; with its correlation with benchmark scores, if there are any; and with the number of
documents that its ranking needs (`longlens.study.ranking`). Evaluators are compared by the key tokens that they select
(`longlens.study.agreement`) and by the rankings that result.
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
# Table 2 of the paper uses alpha 1 and 2, and beta -2 and -1; figure 9 uses no beta.
ALPHAS = (0.5, 1.0, 2.0, 3.0)
BETAS = (-math.inf, -4.0, -2.0, -1.0)
"""-inf disables the LCL criterion."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric of every model; missing values are None.

    Attributes:
        metric: Its name, see the module.
        setting: Setting that selects or weights tokens, if any. Its evaluator is "self" for `longppl_self`.
        alpha: Threshold of the long-short difference, nats; None if there is none.
        beta: Threshold of the long-context likelihood, nats; None if there is none.
        values: One value for each model: a perplexity, or bits.
        intervals: 95 % intervals of the values over documents.
        num_tokens: Number of tokens of each value.
        kendall: tau-b of the ranking of the models with that by LongPPL (first setting, its alpha and beta).
        kendall_interval: 95 % interval of tau-b, over documents.
        correlations: Correlations by benchmark.
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
    """The number of documents that a metric's ranking of the models needs.

    Attributes:
        metric: Its name.
        setting: As in `Measure`.
        alpha: As in `Measure`.
        beta: As in `Measure`.
        curve: Agreement with a ranking by other documents, by the number of documents.
        stable_from: Smallest number of documents on the curve from which the mean tau-b is at least 0.9, if any.
        pairs: Pairs of models with a significant order, and the number of documents that the other pairs need.
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
    """Agreement of two evaluators, or of one at two K, on the same documents.

    Attributes:
        one: The first setting.
        other: The second setting.
        is_own: Whether the second is a model that selects its own key tokens, as in `longppl_self`; it ranks none.
        keys: Agreement of their key tokens.
        kendall: tau-b of the rankings of the models by their LongPPL; None if the second ranks no models.
        kendall_interval: 95 % interval of tau-b, over documents.
    """

    one: Setting
    other: Setting
    is_own: bool
    keys: KeyAgreement
    kendall: float | None
    kendall_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Ablation(Tabular):
    """The result of the ablations. As a table: one row per metric and model.

    Attributes:
        models: Names of the models.
        settings: Evaluators with their K and d; rankings are compared with that of the first.
        alpha: Default threshold of the long-short difference, nats.
        beta: Default threshold of the long-context likelihood, nats.
        num_documents: Number of documents, the same for all.
        benchmarks: Scores by benchmark, one for each model; None if there is no score.
        measures: Every metric of every model.
        stability: The number of documents that rankings need.
        agreement: Agreement of each pair of settings; then of the first with each model's own selection.
        warnings: Caveats about the numbers, one sentence each.
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
        """Returns the object that ``longlens study ablate --json`` prints; missing values are None, never NaN."""
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
    """Computes the ablations of LongPPL over several models, see the module.

    Args:
        runs: Scores of the models, on the same documents.
        evaluators: Scores of evaluators, on the same texts; they may contain more documents.
        benchmarks: By name of a benchmark, scores by the names of the models (`longlens.scoring.scores.names_of`).
        alphas: Alphas of the grid, nats.
        betas: Betas of the grid, nats; -inf, which is always included, disables the LCL criterion.
        rule: ``alpha``, ``beta`` (which are added to the grid) and ``gamma`` for metrics without a grid; ``context``
            and ``stride`` select the short contexts to use.
        self_evaluation: Whether each model is also its own evaluator, which needs its short-context scores at the K
            and d of the first setting. None: the models that have them, and a warning lists the others.
        draws: Number of draws of documents, for each power curve and each interval of a tau.
        seed: Seed of the draws.
        progress: Shows the number of documents.

    Raises:
        UserError: There are no runs or evaluators; documents or texts differ; an evaluator lacks documents or the
            short-context scores; thresholds are not numbers; benchmark scores are of other models; `self_evaluation` is
            True and a model has no short-context scores.
    """
    if not runs or not evaluators:
        raise UserError("an ablation needs scores of models and of an evaluator: pass both, from longlens score DOCS")
    rule = rule or KeyRule()
    if rule.lcl is not None:
        raise UserError("an ablation always includes selection without LCL: leave `use_lcl` out")
    if draws < 1:
        raise UserError(f"`draws` is {draws}; expected at least 1")
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
    """Returns scores by benchmark, one for each model.

    Raises:
        UserError: A score is of a model that is not in the ablation.
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
