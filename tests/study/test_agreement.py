import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longlens.keytokens.selection import select_key_tokens
from longlens.metrics.uncertainty import quantile
from longlens.study.agreement import KeyOverlap, Selected, key_agreement
from tests.metrics.test_thresholds import corpora
from tests.reference import agreement as naive
from tests.toys import NAN, scores, token_scores

pytestmark = [
    pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]


def overlap(one, other, **rule):
    keys = [select_key_tokens(run, **rule) for run in (one, other)]
    counted = KeyOverlap()
    for id in one.ids:
        counted.add(*(Selected(run.get(id), key.get(id)) for run, key in zip((one, other), keys, strict=True)))
    return counted.result()


def test_by_hand():
    one = scores(token_scores(["ab", "c", "d", "e"], [-1, -1, -1, -9], [NAN, -4, -4, -12]))
    other = scores(token_scores(["ab", "c", "d", "e"], [-1, -1, -1, -1], [-9, -4, -1, -1]))
    found = overlap(one, other)
    # "ab" has no LSD in the one, so that its being key in the other is not counted
    assert (found.unit, found.num_units, found.num_keys, found.num_both) == ("tokens", 3, (2, 1), 1)
    assert found.jaccard == 1 / 2
    assert found.chance_jaccard == pytest.approx(2 / 3 * 1 / 2)
    assert found.kappa == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert found.jaccard_interval is None  # of one document
    of_characters = overlap(one, scores(token_scores(["a", "b", "cd", "e"], [-1] * 4, [-9, -9, -4, -1])))
    assert (of_characters.unit, of_characters.num_units) == ("characters", 3)
    assert (of_characters.num_keys, of_characters.num_both) == ((2, 2), 2)


@given(corpora(), st.sampled_from([-1, 0.5, 1]))
@settings(deadline=None, max_examples=60)
def test_counts_are_those_of_the_naive_oracle(corpus, alpha):
    _, rows = corpus
    others = [row.__class__(**{**vars(row), "long_logprobs": row.long_logprobs[::-1].copy()}) for row in rows]
    for pair in ((rows, rows), (rows, others)):
        found = overlap(*(scores(*each) for each in pair), alpha=alpha, beta=-2)
        expected = np.sum(naive.counts(*pair, alpha, -2), axis=0)
        assert [found.num_units, *found.num_keys, found.num_both] == expected.tolist()


@given(corpora(), corpora(), st.sampled_from([-1, 0.5, 1]))
@settings(deadline=None, max_examples=60)
def test_counts_of_two_tokenizers_are_those_of_the_naive_oracle(one, other, alpha):
    pair = one[1], other[1]
    assume(len(pair[0]) == len(pair[1]))
    found = overlap(*(scores(*each) for each in pair), alpha=alpha, beta=-2)
    expected = np.sum(naive.counts(*pair, alpha, -2), axis=0)
    assert [found.num_units, *found.num_keys, found.num_both] == expected.tolist()


def test_equal_selections_agree_and_opposite_ones_do_not():
    same = key_agreement([[10, 3, 3, 3], [10, 4, 4, 4]], "tokens")
    assert (same.jaccard, same.kappa) == (1, 1)
    assert same.jaccard_interval == pytest.approx((1, 1))
    assert same.kappa_interval == pytest.approx((1, 1))
    opposite = key_agreement([[10, 5, 5, 0], [8, 4, 4, 0]], "tokens")
    assert (opposite.jaccard, opposite.kappa) == (0, -1)
    nothing = key_agreement([[10, 0, 0, 0], [8, 0, 0, 0]], "tokens")
    assert nothing.jaccard is nothing.chance_jaccard is nothing.kappa is nothing.kappa_interval is None
    empty = key_agreement([], "tokens")
    assert (empty.num_units, empty.jaccard, empty.kappa) == (0, None, None)
    all_of_them = key_agreement([[5, 5, 5, 5], [5, 5, 5, 5]], "tokens")
    assert (all_of_them.jaccard, all_of_them.chance_jaccard, all_of_them.kappa) == (1, pytest.approx(1), None)


@pytest.mark.parametrize(("units", "one", "other"), [(6, 2, 3), (7, 6, 5), (8, 1, 1), (5, 0, 2), (6, 6, 2), (1, 1, 1)])
def test_chance_is_the_mean_over_all_ways_to_select(units, one, other):
    found = key_agreement([[units, one, other, max(0, one + other - units)]], "tokens")
    assert found.chance_jaccard == pytest.approx(naive.chance_jaccard(units, one, other))


def test_chance_of_many_units_is_that_of_their_shares():
    found = key_agreement([[10**7, 2 * 10**5, 3 * 10**5, 10**5]], "tokens")
    assert found.chance_jaccard == pytest.approx(0.02 * 0.03 / (0.02 + 0.03 - 0.02 * 0.03), rel=1e-4)


counted = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))


@given(st.lists(counted, min_size=2, max_size=8))
@settings(deadline=None)
def test_values_and_intervals_are_those_of_the_naive_oracle(quarters):
    rows = [[a + b + c + d, a + c, b + c, c] for a, b, c, d in quarters]
    totals = np.sum(rows, axis=0).tolist()
    found = key_agreement(rows, "characters")
    for name in ("jaccard", "kappa"):
        statistic = getattr(naive, name)
        value, interval = getattr(found, name), getattr(found, f"{name}_interval")
        if value is None:
            with pytest.raises(ZeroDivisionError):
                statistic(*totals)
            continue
        assert value == pytest.approx(statistic(*totals), abs=1e-12)
        there = [row for row in rows if row[0]]
        if len(there) < 2:
            assert interval is None
            continue
        error, freedom = naive.error_and_freedom(statistic, there)
        half, least = quantile(freedom) * error, 0 if name == "jaccard" else -1
        assert interval == pytest.approx((max(least, value - half), min(1, value + half)), abs=1e-6)


@pytest.mark.parametrize("name", ["jaccard", "kappa"])
def test_intervals_cover(name):
    # 12 documents that differ in length, in how much is key and in how far the two agree
    rng = np.random.default_rng(0)

    def draw(number):
        units = rng.integers(200, 2000, size=number)
        share, agreed = rng.uniform(0.02, 0.1, size=number), rng.uniform(0.3, 0.7, size=number)
        one = rng.binomial(units, share)
        both = rng.binomial(one, agreed)
        return np.stack([units, one, both + rng.binomial(units - one, share * (1 - agreed)), both], axis=1)

    truth = getattr(key_agreement(draw(200_000), "tokens"), name)
    found = [getattr(key_agreement(draw(12), "tokens"), f"{name}_interval") for _ in range(250)]
    covered = np.mean([low <= truth <= high for low, high in found])
    assert 0.9 < covered < 0.99
