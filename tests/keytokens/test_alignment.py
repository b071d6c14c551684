import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.keytokens.alignment import carry_weights, merge_spans, tokens_in_runs, tokens_touching
from tests.reference import keytokens as naive


@st.composite
def tokenizations(draw, length):
    """Spans of a tokenizer: pieces in order, some without their blank, split into bytes, or empty."""
    cuts = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=12))})
    spans = []
    for start, end in itertools.pairwise(cuts):
        kind = draw(st.sampled_from(["plain", "plain", "plain", "gap", "bytes", "empty", "overlapping", "special"]))
        spans += {
            "plain": [(start, end)],
            "gap": [(start + 1, end)],
            "bytes": [(start, end)] * 3,
            "empty": [(start, start), (start, end)],
            "overlapping": [(start, end), (max(0, end - 1), min(length, end + 1))],
            "special": [(0, 0), (start, end)],
        }[kind]
    return spans


@st.composite
def pairs(draw):
    length = len(draw(st.text(max_size=40)))
    source, target = draw(tokenizations(length)), draw(tokenizations(length))
    weights = draw(st.lists(st.floats(0, 5), min_size=len(source), max_size=len(source)))
    return source, weights, target


def as_array(spans):
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


@given(pairs())
def test_runs_are_the_covered_characters(pair):
    spans, _, _ = pair
    assert merge_spans(as_array(spans)).tolist() == [list(run) for run in naive.merge_spans(spans)]


@given(pairs(), st.data())
def test_tokens_match_runs_as_characters_do(pair, data):
    source, _, target = pair
    key = data.draw(st.lists(st.booleans(), min_size=len(source), max_size=len(source)))
    spans = [span for span, is_key in zip(source, key, strict=True) if is_key]
    runs = merge_spans(as_array(spans))
    assert tokens_in_runs(as_array(target), runs).tolist() == naive.tokens_in_runs(target, spans)
    assert tokens_touching(as_array(target), runs).tolist() == naive.tokens_touching(target, spans)


@given(pairs())
def test_carried_weights_are_the_means_over_characters(pair):
    source, weights, target = pair
    carried = carry_weights(as_array(source), weights, as_array(target))
    np.testing.assert_allclose(carried, naive.carry_weights(source, weights, target), rtol=1e-12, atol=1e-300)


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 5))), st.data())
def test_the_same_tokens_get_the_same_weights_and_the_same_key_tokens(pieces, data):
    ends = np.cumsum([length for length, _ in pieces], dtype=np.int64)
    spans = np.stack([ends - [length for length, _ in pieces], ends], axis=1).astype(np.int64)
    weights = [weight for _, weight in pieces]
    np.testing.assert_allclose(carry_weights(spans, weights, spans), weights, rtol=1e-15)
    key = np.array(data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces))), dtype=bool)
    assert tokens_in_runs(spans, merge_spans(spans[key])).tolist() == key.tolist()


def test_nothing_gives_nothing():
    none = np.zeros((0, 2), dtype=np.int64)
    spans = as_array([(0, 2), (2, 2)])
    assert merge_spans(none).shape == (0, 2)
    assert merge_spans([]).shape == (0, 2)
    assert tokens_in_runs(spans, none).tolist() == tokens_touching(spans, none).tolist() == [False, False]
    assert tokens_in_runs(none, as_array([(0, 2)])).tolist() == []
    assert carry_weights(none, [], spans).tolist() == [0, 0]
    assert carry_weights(spans, [3, 4], none).tolist() == []


def test_spans_within_a_longer_one_do_not_end_its_run():
    assert merge_spans([(0, 5), (1, 2), (3, 4), (7, 8), (5, 6)]).tolist() == [[0, 6], [7, 8]]


def test_eq_10_by_hand():
    # "ab" weighs 1 and "cd" weighs 4: "abc" is (1 + 1 + 4) / 3, "d" is 4
    assert carry_weights([(0, 2), (2, 4)], [1, 4], [(0, 3), (3, 4)]).tolist() == [2, 4]


def test_a_character_split_into_bytes_has_the_mean_of_their_weights_and_is_key_with_any_of_them():
    spans = as_array([(0, 1), (0, 1), (1, 2)])
    assert carry_weights(spans, [1, 4, 9], spans).tolist() == [2.5, 2.5, 9]
    assert tokens_in_runs(spans, merge_spans(spans[[1]])).tolist() == [True, True, False]


def test_characters_of_no_token_weigh_nothing():
    assert carry_weights([(1, 2)], [6], [(0, 3), (5, 9)]).tolist() == [2, 0]


def test_eq_9_takes_a_token_whose_whole_text_is_key():
    key = merge_spans([(2, 4), (4, 6), (8, 9)])
    assert key.tolist() == [[2, 6], [8, 9]]
    spans = [(0, 2), (1, 3), (2, 6), (3, 5), (4, 8), (6, 8), (5, 9), (8, 9), (9, 9), (3, 3)]
    assert [i for i, inside in enumerate(tokens_in_runs(spans, key)) if inside] == [2, 3, 7]


@pytest.mark.parametrize(
    ("spans", "runs", "published", "ours"),
    [
        # a key run at token 0 takes the last loss (index -1) there; here it is token 0, which has no score of its own
        ([(0, 2), (2, 4)], [(0, 2)], [-1], [0]),
        # an empty token inside a run counts there, though it has no text
        ([(0, 2), (2, 4), (4, 4), (4, 6)], [(2, 6)], [0, 1, 2], [1, 3]),
        # a token that overhangs the run passes it there, and the tokens in it after that one are lost
        ([(0, 2), (2, 5), (2, 3), (3, 4)], [(2, 4)], [], [2, 3]),
        # gaps between tokens and between runs: both agree, a token over the gap is not key
        ([(0, 2), (3, 5), (6, 9), (9, 10)], [(3, 5), (6, 8), (9, 10)], [0, 2], [1, 3]),
    ],
)
def test_where_the_published_alignment_differs(spans, runs, published, ours):
    assert naive.published_key_losses(spans, runs) == published
    assert np.flatnonzero(tokens_in_runs(spans, as_array(runs))).tolist() == ours
