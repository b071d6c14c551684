"""Computes correlations of metrics and benchmark scores over models: coefficients, intervals, and tests.

All functions are pure functions of a table: rows are models; columns are metrics such as LongPPL, and benchmark scores.
A coefficient that cannot be computed is None, with the reason, never NaN.

**Intervals** use the bootstrap over models: BCa (Efron 1987), at the levels ``Phi(sqrt(n / (n - 1)) t(q, n - 1))``
instead of q = 2.5 % and 97.5 %, which compensates for the spread that a resample of n lacks (Hesterberg 2015, section
4.2): percentile intervals of so few models are too narrow. All intervals use resamples of the same models, so that the
interval of a difference of two coefficients is paired.

**p** is two-sided, by permutation: the share of all n! orders of the scores with a coefficient as far from 0, if there
are at most 9 models; else of 19,999 random orders and the observed one (Phipson and Smyth 2010). Kendall's p is that of
scipy, exact without ties. Models of one family are similar, but count here as independent:
``leave_one_family_out`` shows results that depend on one family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.metrics.uncertainty import Doubles, Interval, quantile
from longlens.tables import Tabular, plain

MIN_MODELS = 3
"""Minimum number of models for a coefficient."""
MIN_MODELS_OF_INTERVAL = 5
"""Minimum number of models for an interval: fewer have too few different resamples."""
EXACT_MODELS = 9
"""Largest number of models for which p is over all orders: 9! = 362,880."""
RESAMPLES = 4000
PERMUTATIONS = 19_999
METRICS = {
    "ppl": "PPL",
    "longppl": "LongPPL",
    "longppl_soft": "LongPPL-soft",
    "longppl_no_lcl": "LongPPL without LCL",
    "ppl_ngram": "PPL on re-occurring 3-grams",
    "ppl_from_context": "PPL on tokens from K on",
}
"""Titles of metrics by their names: of Table 1, figure 9 and Table 11 of the paper, and one for position alone."""
_ALIKE = 1e-12
"""Relative spread below which a column is constant; also the tolerance for coefficients that count as equal."""

Column = Sequence[float | None] | Doubles
"""A value for each model; None or NaN if there is none."""
Statistic = Callable[[Doubles, Doubles, Doubles], Doubles]
"""Maps ``x (n,)``, ``y (n,)`` and ``counts (b, n)`` of each model in each resample to ``(b,)``, NaN for none."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """Scores of scored models.

    Attributes:
        scores: Scores of each benchmark, by the name of a run.
        families: Families of runs, by their names, if a file contains them.
        notes: Rows that did not match, and caveats about scores.
    """

    scores: Mapping[str, Mapping[str, float]]
    families: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Correlation of a metric with scores over models. Missing values are None.

    Attributes:
        n: Number of models that have both values.
        pearson: Pearson's r.
        interval: 95 % interval of Pearson's r.
        p: Two-sided p-value of the hypothesis that Pearson's r is 0, by permutation.
        spearman: Spearman's rho: Pearson's r of the ranks, ties having the mean of theirs.
        spearman_interval: 95 % interval of Spearman's rho.
        spearman_p: As `p`, for Spearman's rho.
        kendall: Kendall's tau-b.
        kendall_interval: 95 % interval of Kendall's tau-b.
        kendall_p: Two-sided p-value of Kendall's tau-b; exact without ties.
        log_pearson: Pearson's r of the metric's logarithm, in which differences of perplexities are nats; None if a
            value is not above 0.
        log_interval: 95 % interval of `log_pearson`.
        exact: Whether `p` and `spearman_p` are over all orders.
        leave_one_family_out: Pearson's r without the models of one family, by its name; empty without families.
        reason: Why there is no coefficient, or no interval.
    """

    n: int
    pearson: float | None = None
    interval: Interval | None = None
    p: float | None = None
    spearman: float | None = None
    spearman_interval: Interval | None = None
    spearman_p: float | None = None
    kendall: float | None = None
    kendall_interval: Interval | None = None
    kendall_p: float | None = None
    log_pearson: float | None = None
    log_interval: Interval | None = None
    exact: bool | None = None
    leave_one_family_out: Mapping[str, float | None] = field(default_factory=dict)
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = plain(self)
        return values

    def in_words(self) -> str:
        """Pearson's r, n, its interval and p; or why there is none."""
        if self.pearson is None:
            return f"No correlation: {self.reason}."
        words = f"Pearson r = {self.pearson:.2f} over {self.n} models"
        if self.interval is not None:
            words += f", 95 % interval [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"
        return words + f", p = {self.p:.2g}."


@dataclass(frozen=True, kw_only=True)
class DependentTest:
    """Whether a metric's correlation with scores differs from another metric's with the same scores.

    Attributes:
        n: Number of models that have all three values.
        r: Pearson's r of the metric and the scores.
        baseline_r: Pearson's r of the other metric and the scores.
        between: Pearson's r of the two metrics.
        difference: ``r - baseline_r``; below 0 if the metric is the better predictor of scores, since a good model
            has a low perplexity and a high score.
        interval: 95 % interval of the difference, by the bootstrap over models.
        t: Williams' t.
        freedom: Its degrees of freedom, n - 3.
        p: Two-sided p-value.
        reason: Why a value does not exist.
    """

    n: int
    r: float | None = None
    baseline_r: float | None = None
    between: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    t: float | None = None
    freedom: int | None = None
    p: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = plain(self)
        return values


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """Spearman's rho of two benchmarks over models.

    Attributes:
        n: Number of models that have both scores.
        spearman: Spearman's rho; None if it does not exist.
        interval: 95 % interval.
        reason: Why a value does not exist.
    """

    n: int
    spearman: float | None = None
    interval: Interval | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class CorrelationTable(Tabular):
    """Correlations of every metric with every benchmark. As a table: one row per pair, with the fields of
    `Correlation`.

    Attributes:
        models: Names of the models.
        families: Family of each model; None without families.
        metrics: Values by metric, one for each model.
        benchmarks: Scores by benchmark, one for each model.
        correlations: Correlations by metric and benchmark.
        baseline: The metric that the others are tested against; None if it is not among them.
        tests: Tests of each other metric against the baseline, by metric and benchmark.
        agreement: Agreement of each two benchmarks, by their names; HELMET's matrix (Yen et al. 2024, figure on
            correlations).
        notes: Caveats about the numbers, one sentence each.
        settings: Settings of the key tokens of the metrics: ``evaluator``, ``context``, ``stride``,
            ``alpha``, ``beta``, ``gamma``, ``lcl``; empty if the metrics were passed.
    """

    models: Sequence[str]
    families: Sequence[str] | None
    metrics: Mapping[str, Sequence[float | None]]
    benchmarks: Mapping[str, Sequence[float | None]]
    correlations: Mapping[str, Mapping[str, Correlation]]
    baseline: str | None
    tests: Mapping[str, Mapping[str, DependentTest]]
    agreement: Mapping[str, Mapping[str, RankAgreement]]
    notes: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that ``longlens study correlate --json`` prints."""
        return {
            "schema_version": 1,
            "num_models": len(self.models),
            "models": [
                {
                    "model": model,
                    "family": None if self.families is None else self.families[place],
                    "metrics": {name: values[place] for name, values in self.metrics.items()},
                    "benchmarks": {name: values[place] for name, values in self.benchmarks.items()},
                }
                for place, model in enumerate(self.models)
            ],
            "metrics": plain(self.correlations),
            "baseline": self.baseline,
            "tests": plain(self.tests),
            "agreement": plain(self.agreement),
            "settings": dict(self.settings),
            "warnings": list(self.notes),
        }

    def _columns(self) -> dict[str, list[Any]]:
        rows = [
            {"metric": metric, "benchmark": benchmark, **correlation.to_json()}
            for metric, row in self.correlations.items()
            for benchmark, correlation in row.items()
        ]
        for row in rows:
            del row["leave_one_family_out"]  # a column for each family would be a table of its own
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def correlate_table(
    metrics: Mapping[str, Column],
    benchmarks: Mapping[str, Column],
    *,
    models: Sequence[str],
    families: Sequence[str] | None = None,
    baseline: str = "ppl",
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> CorrelationTable:
    """Correlates every metric with every benchmark, tests metrics against a baseline, and compares the benchmarks.

    Args:
        metrics: One value per model, by name; perplexities without logarithm, as the paper correlates them.
        benchmarks: One score per model, by name.
        models: Names of the models, each once.
        families: Family of each model.
        baseline: The metric that Williams' test compares the others with, if it is among them.
        resamples: Number of resamples of the bootstrap.
        permutations: Number of random orders, if there are too many models for all orders.
        seed: Seed of both.

    Raises:
        UserError: A column has another number of values than there are models, or a model occurs twice.

    Source: the paper, section 4.1, table 1.
    """
    if len(set(models)) < len(models):
        twice = next(name for name in models if list(models).count(name) > 1)
        raise UserError(f"model {twice!r} occurs twice: give one row per model")
    if families is not None and len(families) != len(models):
        raise UserError(f"`families` names {len(families)}, expected one for each of {len(models)} models")
    columns = {}
    for kind, given in (("metric", metrics), ("benchmark", benchmarks)):
        columns[kind] = {name: _values(values) for name, values in given.items()}
        for name, values in columns[kind].items():
            if len(values) != len(models):
                raise UserError(f"{kind} {name!r} has {len(values)} values, expected one for each of {len(models)}")
    drawn = {"resamples": resamples, "seed": seed}
    correlations = {
        metric: {
            benchmark: correlate_columns(x, y, families=families, permutations=permutations, **drawn)
            for benchmark, y in columns["benchmark"].items()
        }
        for metric, x in columns["metric"].items()
    }
    base = columns["metric"].get(baseline)
    tests = {
        metric: {benchmark: compare_dependent(x, base, y, **drawn) for benchmark, y in columns["benchmark"].items()}
        for metric, x in columns["metric"].items()
        if base is not None and metric != baseline
    }
    return CorrelationTable(
        models=list(models),
        families=None if families is None else list(families),
        metrics={name: plain(values) for name, values in columns["metric"].items()},
        benchmarks={name: plain(values) for name, values in columns["benchmark"].items()},
        correlations=correlations,
        baseline=None if base is None else baseline,
        tests=tests,
        agreement=rank_agreement(benchmarks, **drawn),
        notes=_missing(models, columns),
    )


def correlate_columns(
    x: Column,
    y: Column,
    *,
    families: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Correlation:
    """The correlation of two columns over the models that have both.

    Args:
        x: ``(n,)`` a metric.
        y: ``(n,)`` scores.
        families: ``(n,)`` family of each model.
        resamples: Number of resamples of the bootstrap.
        permutations: Number of random orders, if there are too many models for all orders.
        seed: Seed of both.
    """
    from scipy import stats

    x, y = _values(x), _values(y)
    both = np.isfinite(x) & np.isfinite(y)
    named = None if families is None else [name for name, there in zip(families, both, strict=True) if there]
    x, y = x[both], y[both]
    n = len(x)
    reason = _why_none(n, metric=x, score=y)
    if reason is not None:
        return Correlation(n=n, reason=reason)
    intervals: dict[str, Interval | None] = {}
    for name, statistic in (("pearson", _pearson), ("spearman", _spearman), ("kendall", _kendall)):
        intervals[name], why = _interval(statistic, x, y, resamples=resamples, seed=seed)
        reason = reason or why
    tau = stats.kendalltau(x, y)
    logarithm = np.log(x) if (x > 0).all() else None
    has_log = logarithm is not None and _why_none(n, metric=logarithm) is None
    return Correlation(
        n=n,
        pearson=_r(x, y),
        interval=intervals["pearson"],
        p=_p(x, y, permutations, seed),
        spearman=_r(stats.rankdata(x), stats.rankdata(y)),
        spearman_interval=intervals["spearman"],
        spearman_p=_p(stats.rankdata(x), stats.rankdata(y), permutations, seed),
        kendall=float(tau.statistic),
        kendall_interval=intervals["kendall"],
        kendall_p=float(tau.pvalue),
        log_pearson=_r(logarithm, y) if has_log and logarithm is not None else None,
        log_interval=_interval(_pearson, logarithm, y, resamples=resamples, seed=seed)[0]
        if has_log and logarithm is not None
        else None,
        exact=n <= EXACT_MODELS,
        leave_one_family_out={} if named is None else _without_each(x, y, named),
        reason=reason,
    )


def compare_dependent(
    x: Column, baseline: Column, y: Column, *, resamples: int = RESAMPLES, seed: int = 0
) -> DependentTest:
    """Williams' test of ``r(x, y) = r(baseline, y)``, over the models that have all three values: see `williams_t`.

    Args:
        x: ``(n,)`` a metric.
        baseline: ``(n,)`` the metric that it is compared with.
        y: ``(n,)`` scores.
        resamples: Number of resamples of the bootstrap, for the interval of the difference.
        seed: Seed of the bootstrap.
    """
    from scipy import stats

    x, baseline, y = _values(x), _values(baseline), _values(y)
    all_three = np.isfinite(x) & np.isfinite(baseline) & np.isfinite(y)
    x, baseline, y = x[all_three], baseline[all_three], y[all_three]
    n = len(x)
    reason = _why_none(n, metric=x, baseline=baseline, score=y)
    if reason is not None:
        return DependentTest(n=n, reason=reason)
    r, base, between = _r(x, y), _r(baseline, y), _r(x, baseline)

    def difference(x_and_baseline: Doubles, y: Doubles, counts: Doubles) -> Doubles:
        return _pearson(x_and_baseline[0], y, counts) - _pearson(x_and_baseline[1], y, counts)

    interval, reason = _interval(difference, np.stack([x, baseline]), y, resamples=resamples, seed=seed)
    t = williams_t(r, base, between, n)
    if t is None:
        needed = f"{n} models, and Williams' test needs 4 or more"
        reason = needed if n <= 3 else "no test: the two metrics differ by a factor and a constant alone"
    return DependentTest(
        n=n,
        r=r,
        baseline_r=base,
        between=between,
        difference=r - base,
        interval=interval,
        t=t,
        freedom=None if t is None else n - 3,
        p=None if t is None else float(2 * stats.t.sf(abs(t), n - 3)),
        reason=reason,
    )


def williams_t(r_xy: float, r_by: float, r_xb: float, n: int) -> float | None:
    """Williams' t, with n - 3 degrees of freedom::

        t = (r_xy - r_by) sqrt((n - 1) (1 + r_xb) / (2 |R| (n - 1) / (n - 3) + m^2 (1 - r_xb)^3))
        |R| = 1 - r_xy^2 - r_by^2 - r_xb^2 + 2 r_xy r_by r_xb,  m = (r_xy + r_by) / 2

    Args:
        r_xy: Pearson's r of a first and a third column.
        r_by: Correlation of a second and the third column.
        r_xb: Correlation of the first and the second column.
        n: Number of rows.

    Returns:
        None for fewer than 4 rows, and where the first two columns are the same except for a factor and a constant.

    Sources: Williams 1959, "The comparison of regression variables"; Steiger 1980, "Tests for comparing elements of a
    correlation matrix", equation 7.
    """
    if n <= 3:
        return None
    determinant = max(0.0, 1 - r_xy**2 - r_by**2 - r_xb**2 + 2 * r_xy * r_by * r_xb)
    below = 2 * determinant * (n - 1) / (n - 3) + ((r_xy + r_by) / 2) ** 2 * (1 - r_xb) ** 3
    if below <= _ALIKE:
        return None
    return (r_xy - r_by) * math.sqrt((n - 1) * max(0.0, 1 + r_xb) / below)


def rank_agreement(
    benchmarks: Mapping[str, Column], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, RankAgreement]]:
    """Spearman's rho of each two benchmarks over models, over those that have both scores; 1 of one with itself.

    Args:
        benchmarks: By name, a score for each model.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.
    """
    columns = {name: _values(column) for name, column in benchmarks.items()}
    found: dict[str, dict[str, RankAgreement]] = {name: {} for name in columns}
    names = list(columns)
    for place, one in enumerate(names):
        for other in names[place:]:
            agreed = _agreement(columns[one], columns[other], one == other, resamples, seed)
            found[one][other] = found[other][one] = agreed
    return {one: {other: found[one][other] for other in names} for one in names}


def _agreement(x: Doubles, y: Doubles, same: bool, resamples: int, seed: int) -> RankAgreement:
    from scipy import stats

    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    reason = _why_none(len(x), **({"score": x} if same else {"one": x, "other": y}))
    if reason is not None:
        return RankAgreement(n=len(x), reason=reason)
    if same:
        return RankAgreement(n=len(x), spearman=1.0)
    interval, reason = _interval(_spearman, x, y, resamples=resamples, seed=seed)
    rho = _r(stats.rankdata(x), stats.rankdata(y))
    return RankAgreement(n=len(x), spearman=rho, interval=interval, reason=reason)


_COLUMNS = {
    "metric": "the metric is",
    "baseline": "the baseline metric is",
    "score": "the score is",
    "one": "the first benchmark's score is",
    "other": "the second benchmark's score is",
}


def _why_none(n: int, **columns: Doubles) -> str | None:
    """Why a coefficient of these columns, ``(n,)`` each, does not exist; None if it does."""
    if n < MIN_MODELS:
        return f"{n} model{'' if n == 1 else 's'} with both values, and {MIN_MODELS} or more are needed"
    for name, values in columns.items():
        if np.ptp(values) <= _ALIKE * np.abs(values).max():
            return f"{_COLUMNS[name]} the same for all {n} models"
    return None


def _without_each(x: Doubles, y: Doubles, families: Sequence[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for family in dict.fromkeys(families):
        rest = np.array([name != family for name in families])
        exists = _why_none(int(rest.sum()), metric=x[rest], score=y[rest]) is None
        found[family] = _r(x[rest], y[rest]) if exists else None
    return found


def _missing(models: Sequence[str], columns: Mapping[str, Mapping[str, Doubles]]) -> list[str]:
    """Returns notes about the models that have no value of a column."""
    notes = []
    for named in columns.values():
        for name, values in named.items():
            lack = [model for model, value in zip(models, values, strict=True) if not math.isfinite(value)]
            if lack:
                listed = ", ".join(lack[:4]) + (", …" if len(lack) > 4 else "")
                notes.append(f"{name}: no value of {len(lack)} of {len(models)} models ({listed}), which do not count")
    return notes


def _values(column: Column) -> Doubles:
    values = np.array([math.nan if value is None else value for value in column], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _r(x: Doubles, y: Doubles) -> float:
    """Pearson's r of columns that have a spread."""
    from scipy import stats

    return float(np.clip(stats.pearsonr(x, y).statistic, -1.0, 1.0))


def _p(x: Doubles, y: Doubles, permutations: int, seed: int) -> float:
    """Returns the two-sided p of Pearson's r: the share of orders of y with an r as far from 0."""
    n = len(x)
    x, y = _standard(x), _standard(y)
    orders = _orders(n, permutations, seed)
    limit = abs(float(x @ y)) - _ALIKE * n
    as_far = sum(int((abs(y[part] @ x) >= limit).sum()) for part in np.array_split(orders, max(1, orders.size >> 22)))
    return as_far / len(orders) if n <= EXACT_MODELS else (as_far + 1) / (len(orders) + 1)


@lru_cache(maxsize=4)
def _orders(n: int, permutations: int, seed: int) -> npt.NDArray[np.intp]:
    """Returns all orders of n, or the given number of random ones, as rows."""
    if n > EXACT_MODELS:
        return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    orders = np.zeros((1, 0), dtype=np.intp)
    for new in range(n):  # insert the next element at each position of each order
        orders = np.concatenate([np.insert(orders, place, new, axis=1) for place in range(new + 1)])
    return orders


@lru_cache(maxsize=8)
def _counts(n: int, resamples: int, seed: int) -> Doubles:
    """``(resamples, n)``: how often each resample of n models has each of them; for the same n always the same."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _interval(
    statistic: Statistic, x: Doubles, y: Doubles, *, resamples: int, seed: int
) -> tuple[Interval | None, str | None]:
    """The 95 % interval of a statistic by the bootstrap over models, or why it has none: BCa at expanded levels.

    With the resamples' values s, the observed one o, and those without one model l_i::

        z0 = Phi^-1(share of s below o, equal ones by half),  m_i = mean(l) - l_i,  a = sum(m^3) / (6 sum(m^2)^1.5)
        q' = Phi(z0 + (z0 + z) / (1 - a (z0 + z))),  z = sqrt(n / (n - 1)) t(q, n - 1),  q = 2.5 %, 97.5 %
    """
    from scipy import special

    n = len(y)
    if n < MIN_MODELS_OF_INTERVAL:
        return None, f"no interval: {n} models, and {MIN_MODELS_OF_INTERVAL} or more are needed"
    left_out = statistic(x, y, 1.0 - np.eye(n))
    if not np.isfinite(left_out).all():
        return None, "no interval: all models but one have the same value"
    drawn = statistic(x, y, _counts(n, resamples, seed))
    drawn = drawn[np.isfinite(drawn)]
    if np.ptp(drawn) <= _ALIKE:
        return None, "no interval: every resample of the models has the same coefficient"
    observed = float(statistic(x, y, np.ones((1, n)))[0])
    equal = abs(drawn - observed) <= _ALIKE
    below = float(((drawn < observed) & ~equal).sum() + 0.5 * equal.sum()) / len(drawn)
    bias = float(special.ndtri(np.clip(below, 1 / (len(drawn) + 1), 1 - 1 / (len(drawn) + 1))))
    moved = left_out.mean() - left_out
    squares = float((moved**2).sum())
    acceleration = float((moved**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    wide = math.sqrt(n / (n - 1)) * quantile(n - 1)
    levels = [bias + (bias + z) / (1 - acceleration * (bias + z)) for z in (-wide, wide)]
    low, high = np.percentile(drawn, 100 * special.ndtr(levels))
    return (float(low), float(high)), None


def _standard(x: Doubles) -> Doubles:
    """Standardizes to mean 0 and variance 1, on which no coefficient depends, except for rounding."""
    standard: Doubles = (x - x.mean()) / x.std()
    return standard


def _pearson(x: Doubles, y: Doubles, counts: Doubles) -> Doubles:
    x, y = _standard(x), _standard(y)
    return _weighted_r(np.broadcast_to(x, counts.shape), np.broadcast_to(y, counts.shape), counts)


def _spearman(x: Doubles, y: Doubles, counts: Doubles) -> Doubles:
    return _weighted_r(_ranks(x, counts), _ranks(y, counts), counts)


def _kendall(x: Doubles, y: Doubles, counts: Doubles) -> Doubles:
    signs = [np.sign(values[:, None] - values) for values in (x, y)]

    def pairs(of: Doubles) -> Doubles:
        summed: Doubles = ((counts @ of) * counts).sum(axis=1)
        return summed

    with np.errstate(invalid="ignore", divide="ignore"):  # a resample of equal values has no coefficient
        tau: Doubles = pairs(signs[0] * signs[1]) / np.sqrt(pairs(abs(signs[0])) * pairs(abs(signs[1])))
    return tau


def _ranks(x: Doubles, counts: Doubles) -> Doubles:
    """``(b, n)``: the rank of each model's value in each resample, with mean ranks for ties, minus n / 2."""
    values, group = np.unique(x, return_inverse=True)
    of_group = counts @ (group[:, None] == np.arange(len(values))).astype(np.float64)
    middle = np.cumsum(of_group, axis=1) - (of_group + counts.sum(axis=1, keepdims=True)) / 2
    ranks: Doubles = middle[:, group]
    return ranks


def _weighted_r(x: Doubles, y: Doubles, counts: Doubles) -> Doubles:
    """Returns Pearson's r of each resample; NaN if a column is constant in it."""
    n = counts.sum(axis=1, keepdims=True)
    x = x - (counts * x).sum(axis=1, keepdims=True) / n
    y = y - (counts * y).sum(axis=1, keepdims=True) / n
    xx, yy, xy = ((counts * product).sum(axis=1) for product in (x * x, y * y, x * y))
    there = (xx > _ALIKE * n[:, 0]) & (yy > _ALIKE * n[:, 0])
    r = np.full(len(counts), np.nan)
    r[there] = np.clip(xy[there] / np.sqrt(xx[there] * yy[there]), -1, 1)
    return r
