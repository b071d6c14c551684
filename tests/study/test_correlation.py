"""Correlations over models: against naive oracles, scipy, published examples; and what they are invariant to."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longlens.errors import UserError
from longlens.metrics.uncertainty import quantile
from longlens.study.correlation import (
    RESAMPLES,
    Correlation,
    _counts,
    compare_dependent,
    correlate_columns,
    correlate_table,
    rank_agreement,
    williams_t,
)
from tests.reference import correlation as naive


def drawn(n: int, seed: int = 0, *, ties: bool = False) -> tuple[list[float], list[float], list[float]]:
    """Perplexities, others that are unlike them, and scores that go with the first."""
    rng = np.random.default_rng(seed)
    x, other = np.exp(rng.normal(size=n)), np.exp(rng.normal(size=n))
    y = 50 - 10 * np.log(x) + 6 * rng.normal(size=n)
    return x.tolist(), other.tolist(), (5 * np.round(y / 5) if ties else y).tolist()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [3, 5, 7])
def test_coefficients_and_exact_p_are_those_of_loops_over_all_orders(n: int, ties: bool) -> None:
    x, _, y = drawn(n, seed=2, ties=ties)
    found = correlate_columns(x, y)
    assert found.n == n
    assert found.exact
    for value, p, coefficient in (
        (found.pearson, found.p, naive.pearson),
        (found.spearman, found.spearman_p, naive.spearman),
        (found.kendall, None if ties else found.kendall_p, naive.kendall),
    ):
        assert value == pytest.approx(coefficient(x, y), abs=1e-12)
        assert p is None or p == pytest.approx(naive.exact_p(x, y, coefficient), abs=1e-12)
    assert found.log_pearson == pytest.approx(naive.pearson([math.log(v) for v in x], y), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [5, 9, 12])
def test_intervals_are_bca_of_resampled_lists(n: int, ties: bool) -> None:
    x, other, y = drawn(n, seed=1, ties=ties)
    counts = _counts(n, 200, 0).astype(int).tolist()
    rows = [[place for place, count in enumerate(one) for _ in range(count)] for one in counts]
    left_out = [[place for place in range(n) if place != gone] for gone in range(n)]
    level = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * quantile(n - 1)))

    def expected(of: object) -> tuple[float, float]:
        assert callable(of)
        resampled, without = [of(row) for row in rows], [of(row) for row in left_out]
        return naive.bca_interval(resampled, of(list(range(n))), without, (1 - level, level))

    def of(coefficient: naive.Coefficient, values: list[float], row: list[int]) -> float:
        return coefficient([values[i] for i in row], [y[i] for i in row])

    found = correlate_columns(x, y, resamples=200)
    assert found.interval == pytest.approx(expected(lambda row: of(naive.pearson, x, row)), abs=1e-9)
    assert found.spearman_interval == pytest.approx(expected(lambda row: of(naive.spearman, x, row)), abs=1e-9)
    assert found.kendall_interval == pytest.approx(expected(lambda row: of(naive.kendall, x, row)), abs=1e-9)
    # Resamples of the two coefficients are the same, so that the difference is paired.
    test = compare_dependent(x, other, y, resamples=200)
    paired = expected(lambda row: of(naive.pearson, x, row) - of(naive.pearson, other, row))
    assert test.interval == pytest.approx(paired, abs=1e-9)


def test_interval_is_scipys_bca_but_for_chance() -> None:
    x, _, y = drawn(16, seed=3)
    level = 2 * stats.norm.cdf(math.sqrt(16 / 15) * quantile(15)) - 1
    expected = stats.bootstrap(
        (x, y),
        lambda x, y, axis: stats.pearsonr(x, y, axis=axis).statistic,
        paired=True,
        vectorized=True,
        confidence_level=level,
        n_resamples=20_000,
        method="BCa",
        random_state=1,
    ).confidence_interval
    found = correlate_columns(x, y, resamples=20_000).interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_random_orders_give_scipys_p_but_for_chance() -> None:
    x, _, y = drawn(30, seed=8)
    y = [value + 25 * math.sin(place) for place, value in enumerate(y)]
    found = correlate_columns(x, y)
    assert not found.exact
    assert found.p is not None
    assert found.spearman_p is not None
    assert 0.001 < found.spearman_p < 0.9
    assert found.spearman_p == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.02)


def test_p_of_a_perfect_order_is_the_smallest_there_is() -> None:
    x = [float(value) for value in range(9)]
    assert correlate_columns(x, [-value for value in x]).p == 2 / math.factorial(9)
    x = [float(value) for value in range(20)]
    assert correlate_columns(x, [-value for value in x]).p == 1 / 20_000  # the observed order counts


def test_williams_t_is_that_of_steigers_example() -> None:
    # Steiger 1980, "Tests for comparing elements of a correlation matrix", page 246; also of R's psych::r.test
    t = williams_t(0.4, 0.5, 0.1, 103)
    assert t == pytest.approx(-0.89, abs=0.005)
    assert 2 * stats.t.sf(0.89, 100) == pytest.approx(0.37, abs=0.01)


def test_williams_test_keeps_its_level() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        score, one, other = rng.normal(size=(3, 12))
        test = compare_dependent(2 * score + one, 2 * score + other, score + rng.normal(size=12), resamples=50)
        hits += test.p is not None and test.p < 0.05
    assert 0.02 < hits / 400 < 0.09


@pytest.mark.parametrize(
    ("x", "y", "n", "reason"),
    [
        ([1.0, 2.0, None], [3.0, 1.0, 2.0], 2, "2 models with both values, and 3 or more are needed"),
        ([], [], 0, "0 models with both values, and 3 or more are needed"),
        ([2.0] * 4, [1.0, 2.0, 3.0, 4.0], 4, "the metric is the same for all 4 models"),
        ([1.0, 2.0, 3.0, 4.0], [0.0] * 4, 4, "the score is the same for all 4 models"),
        ([1.0, math.nan, 3.0, math.inf], [1.0, 2.0, 3.0, 4.0], 2, "2 models with both values"),
    ],
)
def test_what_does_not_exist_has_a_reason(x: list[float | None], y: list[float | None], n: int, reason: str) -> None:
    found = correlate_columns(x, y, families=["a"] * len(x))
    assert found.n == n
    assert found.pearson is None
    assert found.p is None
    assert found.interval is None
    assert found.reason is not None
    assert reason in found.reason
    assert compare_dependent(x, x, y).reason is not None


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.0, 2.0, 3.0, 5.0], [4.0, 3.0, 2.0, 2.5], "4 models, and 5 or more"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], "all models but one have the same value"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], "every resample of the models has the same"),
    ],
)
def test_an_interval_that_does_not_exist_has_a_reason(x: list[float], y: list[float], reason: str) -> None:
    found = correlate_columns(x, y)
    assert found.pearson is not None
    assert found.interval is None
    assert found.spearman_interval is None
    assert found.reason is not None
    assert reason in found.reason


def test_no_test_of_a_metric_against_its_own_multiple() -> None:
    x, _, y = drawn(9)
    test = compare_dependent(x, [2 * value + 1 for value in x], y)
    assert test.t is None
    assert test.p is None
    assert test.difference == pytest.approx(0, abs=1e-12)
    assert test.reason == "no test: the two metrics differ by a factor and a constant alone"


def test_missing_values_are_left_out_pairwise_and_said() -> None:
    x, other, y = drawn(8)
    models = [f"m{place}" for place in range(8)]
    holes: list[float | None] = [*x]
    holes[2] = None
    table = correlate_table({"ppl": other, "longppl": holes}, {"lines": y}, models=models)
    left = [place for place in range(8) if place != 2]
    rest = correlate_columns([x[place] for place in left], [y[place] for place in left])
    assert table.correlations["longppl"]["lines"] == rest
    assert table.correlations["ppl"]["lines"].n == 8
    assert table.tests["longppl"]["lines"].n == 7
    assert table.notes == ["longppl: no value of 1 of 8 models (m2), which do not count"]


def test_leave_one_family_out_is_the_correlation_of_the_others() -> None:
    x, _, y = drawn(9)
    families = ["a", "b", "b", "a", "c", "a", "b", "c", "d"]
    found = correlate_columns(x, y, families=families).leave_one_family_out
    assert list(found) == ["a", "b", "c", "d"]
    for family, value in found.items():
        kept = [place for place in range(9) if families[place] != family]
        assert value == pytest.approx(naive.pearson([x[i] for i in kept], [y[i] for i in kept]), abs=1e-12)
    assert correlate_columns(x[:4], y[:4], families=["a", "a", "a", "b"]).leave_one_family_out["a"] is None


def test_matrix_of_benchmarks_is_symmetric_with_ones() -> None:
    x, other, y = drawn(9)
    agreement = rank_agreement({"a": x, "b": other, "c": y, "d": [1.0] * 9})
    assert [agreement[name][name].spearman for name in "abc"] == [1.0] * 3
    assert agreement["a"]["b"] == agreement["b"]["a"]
    assert agreement["a"]["c"].spearman == pytest.approx(naive.spearman(x, y), abs=1e-12)
    assert agreement["d"]["d"].spearman is None
    assert agreement["d"]["d"].reason is not None
    assert agreement["a"]["d"].reason == "the second benchmark's score is the same for all 9 models"


def test_table_as_json_and_as_rows() -> None:
    x, other, y = drawn(9)
    table = correlate_table(
        {"ppl": other, "longppl": x}, {"a": y, "b": [None] * 9}, models=list("abcdefghi"), families=["f", "g", "h"] * 3
    )
    content = table.to_json()
    assert content["num_models"] == 9
    assert list(content["metrics"]) == ["ppl", "longppl"]
    assert {"pearson", "interval", "spearman", "kendall", "p", "n"} <= content["metrics"]["longppl"]["a"].keys()
    assert content["metrics"]["longppl"]["b"]["pearson"] is None
    assert content["tests"].keys() == {"longppl"}
    assert content["baseline"] == "ppl"
    assert "NaN" not in json.dumps(content, allow_nan=False)
    rows = table.to_arrow()
    assert rows.num_rows == 4
    assert rows.column("pearson").null_count == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["a", "b", "a"]}, "model 'a' occurs twice"),
        ({"models": ["a", "b"]}, "metric 'ppl' has 3 values, expected one for each of 2"),
        ({"families": ["x"]}, "`families` names 1, expected one for each of 3 models"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict[str, list[str]], message: str) -> None:
    given: dict[str, list[str]] = {"models": ["a", "b", "c"], **change}
    with pytest.raises(UserError, match=message):
        correlate_table({"ppl": [1.0, 2.0, 3.0]}, {"a": [1.0, 2.0, 3.0]}, **given)  # type: ignore[arg-type]


finite = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=0, max_size=8), st.randoms(use_true_random=False))
def test_neither_order_nor_unit_of_models_changes_a_coefficient(
    rows: list[tuple[float, float]], random: np.random.RandomState
) -> None:
    def of(rows: list[tuple[float, float]], factor: float = 1.0) -> Correlation:
        return correlate_columns([factor * x for x, _ in rows], [y for _, y in rows], resamples=40, permutations=50)

    found = of(rows)
    json.dumps(found.to_json(), allow_nan=False)  # never NaN
    shuffled = list(rows)
    random.shuffle(shuffled)
    for other, sign in ((of(shuffled), 1), (of(rows, 4.0), 1), (of(rows, -0.5), -1)):
        assert other.n == found.n
        assert (other.pearson is None) == (found.pearson is None)
        for name in ("pearson", "spearman", "kendall"):
            if found.pearson is not None:
                assert getattr(other, name) == pytest.approx(sign * getattr(found, name), abs=1e-9)
                assert -1 <= getattr(found, name) <= 1
        assert other.p == pytest.approx(found.p) if found.p is not None else other.p is None
    for low_high in (found.interval, found.spearman_interval, found.kendall_interval):
        assert low_high is None or -1 <= low_high[0] <= low_high[1] <= 1


# Table 9 of the paper (arXiv 2410.23771): LongEval accuracy and perplexities of 15 prompt lengths.
ACCURACY = {
    "Yi": [100.0, 94.0, 84.0, 76.0, 76.0, 64.0, 68.0, 54.0, 60.0, 58.0, 46.0, 44.0, 50.0, 52.0, 48.0],
    "CLEX": [82.0, 34.0, 84.0, 82.0, 58.0, 62.0, 58.0, 56.0, 50.0, 44.0, 46.0, 24.0, 22.0, 28.0, 24.0],
}
ANSWERS = {
    "Yi": [1.49, 1.47, 1.59, 1.64, 1.91, 2.00, 1.98, 2.29, 2.28, 2.15, 2.39, 2.11, 2.23, 2.32, 2.08],
    "CLEX": [1.31, 2.33, 1.23, 1.33, 1.47, 1.43, 1.51, 1.54, 1.63, 1.78, 1.89, 2.23, 2.50, 2.61, 2.59],
}
REST = {
    "Yi": [2.15, 2.17, 2.12, 2.18, 2.18, 2.20, 2.27, 2.25, 2.25, 2.23, 2.23, 2.21, 2.22, 2.25, 2.24],
    "CLEX": [2.22, 2.31, 2.17, 2.18, 2.10, 2.16, 2.17, 2.14, 2.14, 2.15, 2.15, 2.18, 2.20, 2.24, 2.24],
}


@pytest.mark.parametrize(("model", "answers", "rest"), [("Yi", -0.91, -0.74), ("CLEX", -0.93, -0.35)])
def test_table_9_of_the_paper(model: str, answers: float, rest: float) -> None:
    """'Almost no correlation' of non-answer tokens (section 2.1) does not hold for Yi."""
    lengths = [str(place) for place in range(15)]
    table = correlate_table(
        {"ppl": REST[model], "answers": ANSWERS[model]}, {"accuracy": ACCURACY[model]}, models=lengths
    )
    assert table.correlations["answers"]["accuracy"].pearson == pytest.approx(answers, abs=0.005)
    assert table.correlations["ppl"]["accuracy"].pearson == pytest.approx(rest, abs=0.005)
    p = table.correlations["ppl"]["accuracy"].p
    assert p is not None
    assert (p < 0.01) == (model == "Yi")


def test_resamples_of_as_many_models_are_the_same() -> None:
    assert _counts(9, RESAMPLES, 0) is _counts(9, RESAMPLES, 0)
    assert (_counts(9, RESAMPLES, 0).sum(axis=1) == 9).all()
