import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longlens.metrics import compare
from longlens.metrics.longppl import column
from longlens.study.ranking import (
    agreement_interval,
    kendall_tau,
    pair_share,
    power_curve,
    settled_pairs,
    stable_from,
    subset_sizes,
    values_of,
)
from tests.metrics.test_thresholds import random_scores
from tests.reference import ranking as naive
from tests.toys import NAN, scores

INF = math.inf


def noise(rng, models, documents, *, spread=0.0, noise=1.0):
    """Sums of models whose nats per token differ by `spread`; documents have unequal weights."""
    weight = rng.integers(5, 80, size=documents).astype(float)
    nats = 3 + spread * np.arange(models)[:, None] + noise * rng.normal(size=(models, documents))
    return np.stack([-nats * weight, np.broadcast_to(weight, nats.shape)], axis=-1)


values = st.lists(st.sampled_from([1.0, 2.0, 2.5, 7.0, INF]), min_size=2, max_size=6)


@given(values, values)
def test_tau_is_that_of_scipy(one, other):
    size = min(len(one), len(other))
    expected = stats.kendalltau(one[:size], other[:size]).statistic
    found = float(kendall_tau(one[:size], other[:size]))
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_model_without_a_value_is_ordered_against_no_other():
    assert kendall_tau([1, 2, NAN], [1, 2, 3]) == pytest.approx(1 / math.sqrt(1 * 3))
    assert pair_share([1, 2, NAN], [1, 2, 3]) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert pair_share([1, 2, 3], [1, 2, NAN]) == 1  # the one pair that the reference orders
    assert np.isnan(pair_share([1, 2], [NAN, 1]))
    assert np.isnan(kendall_tau([1, 2], [3, 3]))


def test_values_are_ratios_of_sums_and_infinite_with_a_token_of_probability_0():
    sums = np.array([[[-4, 2], [-INF, 1]], [[0, 0], [-6, 3]]], dtype=float)
    counts = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=float)
    np.testing.assert_array_equal(values_of(sums, counts), [[INF, 2], [2, NAN], [INF, 2], [NAN, NAN]])


@pytest.mark.parametrize(
    ("documents", "sizes"), [(3, []), (4, [1, 2]), (5, [1, 2, 3]), (12, [1, 2, 4, 6]), (17, [1, 2, 4, 8, 9])]
)
def test_sizes_leave_a_half_for_the_reference(documents, sizes):
    assert subset_sizes(documents) == sizes
    assert [point.num_documents for point in power_curve(noise(np.random.default_rng(0), 3, documents))] == sizes


@given(st.integers(2, 4), st.integers(4, 9), st.integers(0, 100))
@settings(deadline=None, max_examples=25)
def test_the_power_curve_is_that_of_the_naive_oracle(models, documents, seed):
    rng = np.random.default_rng(seed)
    sums = noise(rng, models, documents, spread=0.5)
    sums[rng.random(sums.shape[:2]) < 0.2] = 0  # a document without key tokens of a model
    sums[rng.random(sums.shape[:2]) < 0.05, 0] = -INF
    sums[sums[..., 1] == 0] = 0
    expected = naive.power_curve(sums.tolist(), draws=20, seed=seed)
    found = power_curve(sums, draws=20, seed=seed)
    if not any(taus for taus, _ in expected.values()):
        assert found == []
        return
    assert [point.num_documents for point in found] == sorted(expected)
    for point in found:
        taus, shares = expected[point.num_documents]
        assert point.kendall == pytest.approx(np.mean(taus))
        assert point.kendall_interval == pytest.approx(np.percentile(taus, [2.5, 97.5]), abs=1e-12)
        assert point.pairs == pytest.approx(np.mean(shares))
        assert point.pairs_interval == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=1e-12)


def test_of_models_that_do_not_differ_the_curve_stays_at_chance():
    # a ranking by half of the documents would agree with that by all of them: tau about 0.5
    curves = [power_curve(noise(np.random.default_rng(seed), 5, 12), draws=100) for seed in range(60)]
    halves = [curve[-1].kendall for curve in curves]
    assert abs(np.mean(halves)) < 0.1
    assert abs(np.mean([curve[-1].pairs for curve in curves]) - 0.5) < 0.05
    against_all = []
    for seed in range(60):
        sums = noise(np.random.default_rng(seed), 5, 12)
        against_all.append(kendall_tau(*(values_of(sums, np.arange(12)[None] < size)[0] for size in (6, 12))))
    assert np.mean(against_all) > 0.3


def test_of_models_that_differ_the_curve_rises_to_1():
    curve = power_curve(noise(np.random.default_rng(0), 5, 40, spread=0.8))
    taus = [point.kendall for point in curve]
    assert taus == sorted(taus)
    assert taus[0] < 0.8 < 0.95 < taus[-1]
    assert stable_from(curve) == next(p.num_documents for p in curve if p.kendall >= 0.9)
    assert stable_from(curve[:2]) is None
    assert stable_from([]) is None
    assert power_curve(noise(np.random.default_rng(0), 1, 40)) == []


def test_the_same_seed_gives_the_same_curve():
    sums = noise(np.random.default_rng(0), 3, 9)
    assert power_curve(sums, draws=50, seed=3) == power_curve(sums, draws=50, seed=3)
    assert power_curve(sums, draws=50, seed=3) != power_curve(sums, draws=50, seed=4)


def test_the_interval_of_a_tau_is_by_documents_that_both_rankings_draw():
    rng = np.random.default_rng(0)
    one, other = noise(rng, 4, 10, spread=0.3), noise(rng, 4, 10, spread=0.3)
    draws = np.random.default_rng(5).multinomial(10, np.full(10, 0.1), size=200)
    taus = []
    for drawn in draws:
        documents = [place for place, times in enumerate(drawn) for _ in range(times)]
        taus.append(naive.tau(*([naive.value(model, documents) for model in sums.tolist()] for sums in (one, other))))
    assert agreement_interval(one, other, draws=200, seed=5) == pytest.approx(np.percentile(taus, [2.5, 97.5]))
    assert agreement_interval(one, one) == (1, 1)
    assert agreement_interval(one[:1], other[:1]) is None
    assert agreement_interval(one[:, :1], other[:, :1]) is None
    assert agreement_interval(0 * one, other) is None


def test_pairs_are_settled_as_compare_says():
    rng = np.random.default_rng(1)
    runs = [
        scores(*(random_scores(rng, 300 + 40 * i, id=f"d{i}", short=False) for i in range(5)), name=name)
        for name in "ABC"
    ]
    runs[2] = scores(
        *(row.__class__(**{**vars(row), "long_logprobs": row.long_logprobs * 2}) for row in runs[0]), name="C"
    )
    pairs = {}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        found = compare([runs[i], runs[j]])
        pairs[i, j] = found.pairs[0].log_ppl
    results = compare(runs).results
    sums = np.stack([column(result.documents, "scored") for result in results])
    settled = settled_pairs(sums, [result.num_tokens for result in results])
    assert settled.num_pairs == 3
    assert settled.num_settled == sum(pair.settled for pair in pairs.values()) == 2
    needed = sorted(pair.documents_to_settle for pair in pairs.values())
    assert (settled.documents_to_settle_half, settled.documents_to_settle) == (needed[1], needed[2])
    alike = settled_pairs(np.stack([sums[0], sums[0], sums[2]]), [100, 100, 100])
    assert (alike.num_settled, alike.documents_to_settle) == (2, None)
    few = settled_pairs(sums, [100, 19, 100])  # too few tokens for an interval
    assert (few.num_settled, few.documents_to_settle, few.documents_to_settle_half) == (1, None, None)
