import numpy as np
import pytest

from longlens.metrics import bootstrap_interval


def negative(mean):
    return -mean


def documents(n=40, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 50, n)
    return np.stack([-2 * tokens + rng.normal(0, 5, n), tokens], axis=1)


def test_it_is_the_percentile_interval_of_ratios_of_resampled_sums():
    sums = documents()
    drawn = np.random.default_rng(9).integers(0, 40, (20_000, 40))
    totals = sums[drawn].sum(axis=1)
    expected = np.percentile(-totals[:, 0] / totals[:, 1], [2.5, 97.5])
    np.testing.assert_allclose(bootstrap_interval(negative, sums, resamples=20_000), expected, atol=0.005)


def test_a_seed_gives_the_same_interval_and_blocks_do_not_matter(monkeypatch):
    sums = documents()
    first = bootstrap_interval(negative, sums, seed=3, resamples=300)
    assert bootstrap_interval(negative, sums, seed=3, resamples=300) == first
    assert bootstrap_interval(negative, sums, seed=4, resamples=300) != first
    monkeypatch.setattr("longlens.metrics.uncertainty._ELEMENTS_AT_ONCE", 40 * 7)
    assert bootstrap_interval(negative, sums, seed=3, resamples=300) == pytest.approx(first, rel=1e-12)


def test_documents_are_drawn_in_pairs_so_that_a_constant_difference_is_certain():
    hard = documents()
    easy = hard.copy()
    easy[:, 0] += 0.5 * easy[:, 1]
    low, high = bootstrap_interval(lambda a, b: b - a, hard, easy, resamples=200)
    assert (low, high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_resamples_without_a_value_are_left_out():
    sums = np.array([[-2.0, 1], [-4, 2], [-4, 2], *[[0, 0]] * 30])  # a resample without weight is drawn often
    assert bootstrap_interval(negative, sums, resamples=500) == (2, 2)


@pytest.mark.parametrize(
    "sums", [[[-1.0, 1]], [[-1, 1], [0, 0]], [[-1, 1], [-np.inf, 1], [-1, 1]], np.zeros((0, 2)), [[0, 0], [0, 0]]]
)
def test_there_is_no_interval_for_fewer_than_two_documents_or_infinite_ones(sums):
    assert bootstrap_interval(negative, np.array(sums, dtype=float)) is None
