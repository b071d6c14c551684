import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks.metrics import ndcg_at_k, parse_ranking
from tests.tasks.metrics.reference import ndcg

ids = st.sampled_from([str(n) for n in range(15)])


@given(st.dictionaries(ids, st.integers(0, 5)), st.dictionaries(ids, st.integers(0, 3), min_size=1), st.integers(1, 12))
def test_ndcg_is_its_formula_with_ties_by_falling_id(ranking, relevance, k):
    assert ndcg_at_k(ranking, relevance, k) == pytest.approx(ndcg(ranking, relevance, k), abs=1e-5)


@given(st.dictionaries(ids, st.integers(1, 3), min_size=1), st.permutations(range(15)))
def test_the_best_ranking_has_1_in_whatever_order_it_is_given(relevance, order):
    best = sorted(relevance, key=relevance.__getitem__, reverse=True)
    scores = {document: -place for place, document in enumerate(best)}
    shuffled = {best[n]: scores[best[n]] for n in order if n < len(best)}
    assert ndcg_at_k(shuffled, relevance) == 1.0
    assert ndcg_at_k({int(document): score for document, score in scores.items()}, relevance) == 1.0


@given(st.lists(ids, min_size=2, max_size=12, unique=True), st.sampled_from([" > ", ">", " >\n"]))
def test_a_written_ranking_is_read_back(documents, separator):
    for style in ("{}", "ID{}", "[{}]", "[ID: {}]"):
        text = "Ranking: " + separator.join(style.format(document) for document in documents)
        assert list(parse_ranking(text)) == documents
        assert list(parse_ranking(text).values()) == list(range(len(documents), 0, -1))


def test_a_repeated_id_keeps_its_first_place_and_counts():
    assert parse_ranking("1 > 1 > 2") == {"1": 3, "2": 1}


def test_a_ranking_of_nothing_is_the_text():
    assert parse_ranking("I cannot.") == {"i cannot.": 1}
    assert ndcg_at_k(parse_ranking("I cannot."), {"1": 1}) == 0.0


@given(st.dictionaries(ids, st.integers(0, 3), min_size=1), st.dictionaries(ids, st.integers(-3, 3), min_size=1))
def test_relevance_below_0_gains_nothing(ranking, relevance):
    """trec_eval says so for -1; below that it ends the program, which no data file should do."""
    assert ndcg_at_k(ranking, relevance) == ndcg_at_k(ranking, {one: max(0, grade) for one, grade in relevance.items()})


def test_half_a_surrogate_pair_is_a_text_like_any_other():
    reply = json.loads(r'"\ud83d"')  # what is left of an emoji where a reply was cut
    assert ndcg_at_k(parse_ranking(reply), {"1": 1}) == 0.0


def test_what_cannot_be_scored_is_said():
    with pytest.raises(UserError, match="`k` is 0, expected at least 1"):
        ndcg_at_k({}, {"a": 1}, 0)
    with pytest.raises(UserError, match="`relevance` is empty"):
        ndcg_at_k({"a": 1}, {})
    with pytest.raises(UserError, match=r"relevance of document 'a' is 0\.5, expected an integer"):
        ndcg_at_k({"a": 1}, {"a": 0.5})
