import math

import numpy as np
import pytest
from benchmarks.coverage import DOCUMENTS, POPULATIONS, coverage
from scipy import stats

from longlens.metrics import compare, estimate
from longlens.metrics.uncertainty import (
    Estimate,
    bounded_interval,
    drawn_values,
    linearised,
    mean_interval,
    scaled_deviations,
    score_interval,
)
from tests.reference import metrics as naive
from tests.toys import NAN, scores, token_scores


@pytest.mark.parametrize("population", [p for p in POPULATIONS if not p.hard], ids=lambda p: p.name)
def test_intervals_cover_within_2_points_of_95_percent(population):
    repeats = 2000 // (2 * population.rarer**2) if population.rarer > 1 else 2000
    allowed = 0.02 + 2 * math.sqrt(0.95 * 0.05 / repeats)
    for n in (n for n in DOCUMENTS if n >= population.least and (population.rarer == 1 or n == 5)):
        held, there = coverage(population, n, repeats, np.random.default_rng(n))
        if there * repeats < 400 and population.rarer == 1:
            continue  # too few documents have enough key tokens
        if population.steps:
            assert held > 0.88, n
        else:
            assert held == pytest.approx(0.95, abs=allowed), n


@pytest.mark.parametrize("n", [2, 3, 5])
def test_equal_models_are_significantly_different_in_one_of_twenty_cases(n):
    pieces = ["a b"] * 25
    found = []
    for seed in range(150):
        random = np.random.default_rng(seed)
        hardness = -2 - 2 * random.random((n, 1))
        runs = []
        for name in "AB":
            long = np.minimum(hardness + 0.3 * random.normal(size=(n, 1)) + random.normal(size=(n, 25)), -0.01)
            long[:, 0] = NAN
            runs.append(scores(*(token_scores(pieces, row, id=f"d{i}") for i, row in enumerate(long)), name=name))
        found.append(compare(runs).pairs[0].log_ppl.significant)
    assert np.mean(found) < 0.05 + 2 * math.sqrt(0.95 * 0.05 / len(found))


def documents(n=7, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 50, n)
    return np.stack([-2 * tokens + rng.normal(0, 5, n), tokens], axis=1)


@pytest.mark.parametrize("n", [2, 3, 12])
def test_it_is_what_the_naive_oracle_finds(n):
    own, base = documents(n), documents(n, seed=1)
    for found, arguments in ((estimate(own), [own]), (estimate(own, base), [own, base])):
        assert found == pytest.approx(naive.estimate(*arguments), rel=1e-9)
    value, error, freedom = estimate(own)
    half = stats.t.ppf(0.975, freedom) * error
    assert estimate(own).interval() == pytest.approx((value - half, value + half))
    assert estimate(own).interval(relative=True) == pytest.approx(
        (value * math.exp(-half / value), value * math.exp(half / value))  # value < 0
    )


def test_documents_of_equal_weight_have_students_interval():
    values = np.random.default_rng(0).normal(size=9)
    found = estimate(np.stack([7 * values, np.full(9, 7.0)], axis=1))
    known = stats.ttest_1samp(values, 0).confidence_interval()
    assert found.interval() == pytest.approx((known.low, known.high))
    assert mean_interval(values.tolist()) == pytest.approx((known.low, known.high))
    assert found.freedom == pytest.approx(8)


def test_what_both_models_find_hard_drops_out_of_a_difference():
    hard = documents()
    easy = hard.copy()
    easy[:, 0] += 0.5 * easy[:, 1]
    assert estimate(easy, hard).interval() == (pytest.approx(0.5), pytest.approx(0.5))


def test_one_document_with_nearly_all_tokens_leaves_hardly_a_degree_of_freedom():
    sums = np.array([[-20000.0, 10000], *[[-30, 10]] * 9])
    assert estimate(sums).freedom == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "sums", [[[-1.0, 1]], [[-1, 1], [0, 0]], [[-1, 1], [-np.inf, 1], [-1, 1]], np.zeros((0, 2)), [[0, 0], [0, 0]]]
)
def test_there_is_no_interval_for_fewer_than_two_documents_or_infinite_ones(sums):
    assert estimate(np.array(sums, dtype=float)) is None
    assert estimate(documents(len(sums)), np.array(sums, dtype=float)) is None


def test_an_interval_that_has_no_finite_end_does_not_exist():
    assert Estimate(1.0, 100.0, 1.0).interval(relative=True) is None
    assert Estimate(1.0, 100.0, 1.0).interval() == pytest.approx((-1269.62, 1271.62), abs=0.01)


def test_draws_are_spread_as_the_intervals_say():
    sums = documents(6)
    values, deviations, shares = linearised(np.stack([sums[:, 0], 2 * sums[:, 0]]), sums[:, 1])
    scaled, freedom = scaled_deviations(deviations, shares)
    drawn = drawn_values(values, scaled, freedom, 0, 200_000)
    low, high = estimate(sums).interval()
    assert np.percentile(drawn[0], [2.5, 97.5]) == pytest.approx([low, high], rel=0.02)
    assert drawn[1] == pytest.approx(2 * drawn[0])


@pytest.mark.parametrize(("hits", "n"), [(0, 2), (1, 2), (3, 5), (5, 5), (39, 40)])
def test_scores_of_0_and_1_have_wilsons_interval(hits, n):
    known = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert score_interval([1.0] * hits + [0.0] * (n - hits)) == pytest.approx((known.low, known.high), abs=1e-9)


def test_other_scores_stay_between_0_and_1_and_are_no_point():
    low, high = score_interval([0.5, 0.5, 0.5])
    assert (low, high) == bounded_interval(0.5, 0.0, 3)
    assert 0 < low < 0.2 < 0.8 < high < 1
    assert score_interval([1.0, 1.0, 0.9]) > (0.5, 0.99)
    assert score_interval([0.3]) is None
