"""Documents with facts: what a repeated fact says is said once before, far enough, and nowhere else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.study.longce.documents import (
    FACT,
    Facts,
    Form,
    Prose,
    Vocabulary,
    make_document,
    make_drill,
    make_question,
)

VOCABULARY = Vocabulary(words=tuple("abcdefghij"), keys=8, values=5)
WORDS = [np.arange(300) % 10, np.arange(7, 207) % 10]


def made(kind, facts, seed, *arguments, length=150):
    rng = np.random.default_rng(seed)
    return kind(Prose(WORDS, rng), VOCABULARY, facts, length, *arguments, rng)


def facts_in(ids):
    """(place, key, value) of every fact; every mark begins a whole one, and nothing else is not a word."""
    places = np.flatnonzero(ids == VOCABULARY.mark)
    found = [(int(place), int(ids[place + 1]), int(ids[place + 2])) for place in places]
    assert all(
        (mark, key, value) == VOCABULARY.fact(key - 11, (value - 19) % 5) for _, key, value in found for mark in [10]
    )
    assert np.count_nonzero(ids >= VOCABULARY.mark) == FACT * len(found)
    return found


@given(st.integers(0, 8), st.integers(0, 3), st.integers(3, 60), st.integers(0, 10**6))
def test_facts_are_stated_and_repeated_as_often_as_said(stated, repeated, distance, seed):
    facts = Facts(stated=stated, repeated=min(stated, repeated), distance=distance)
    document = made(make_document, facts, seed)
    assert document.token_ids.shape == (150,)
    found = facts_in(document.token_ids)
    assert len(found) == stated + facts.repeated
    assert len({key for _, key, _ in found}) == stated
    assert len(document.answers) == facts.repeated
    for answer in document.answers:
        place = answer.position - FACT + 1
        same = [(at, value) for at, key, value in found if key == document.token_ids[place + 1]]
        assert [at for at, _ in same] == [place - answer.distance, place]
        assert same[0][1] == same[1][1] == document.token_ids[answer.position]
        assert answer.distance >= distance


def test_between_two_facts_is_a_word():
    for seed in range(50):
        places = [
            place
            for place, _, _ in facts_in(made(make_document, Facts(stated=8, repeated=3, distance=9), seed).token_ids)
        ]
        assert min(np.diff(places)) > FACT


def test_repetitions_reach_every_part_of_a_document():
    facts = Facts(stated=1, repeated=1, distance=20)
    answers = [made(make_document, facts, seed).answers[0] for seed in range(400)]
    assert {answer.distance // 40 for answer in answers} == {0, 1, 2, 3}
    assert min(answer.position for answer in answers) < 40
    assert max(answer.position for answer in answers) > 140


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 64), (1.0, 127)])
def test_a_question_stands_last_and_its_fact_at_the_depth(depth, place):
    for seed in range(20):
        document = made(make_question, Facts(stated=5, repeated=0, distance=20), seed, depth)
        found = facts_in(document.token_ids)
        assert len(found) == 6
        assert [answer.position for answer in document.answers] == [149]
        assert found[-1][0] == 147
        assert (place, *found[-1][1:]) in found
        assert len({key for _, key, _ in found}) == 5


def test_a_drill_is_facts_alone_of_few_keys():
    for seed in range(20):
        ids = make_drill(VOCABULARY, 61, np.random.default_rng(seed)).token_ids
        assert ids.shape == (61,)
        found = facts_in(ids[:60])
        assert len(found) == 20
        values = {key: {v for _, k, v in found if k == key} for _, key, _ in found}
        assert all(len(own) == 1 for own in values.values())
        assert len(values) <= 8


def test_the_same_seed_the_same_document():
    facts = Facts(stated=5, repeated=2, distance=20)
    assert (made(make_document, facts, 3).token_ids == made(make_document, facts, 3).token_ids).all()
    assert (made(make_document, facts, 3).token_ids != made(make_document, facts, 4).token_ids).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stated": 1, "repeated": 2}, "repeated is 2 and stated 1: expected 0 <= repeated <= stated"),
        ({"distance": 2}, "`distance` is 2; expected at least 3"),
    ],
)
def test_facts_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Facts(**{"stated": 1, "repeated": 1, "distance": 20, **settings})


def test_facts_that_do_not_fit():
    with pytest.raises(
        UserError, match="documents of 22 tokens have no room for 1 facts, 1 of them repeated 20 tokens"
    ):
        Facts(stated=1, repeated=1, distance=20).check(22)
    with pytest.raises(UserError, match="no room for a fact in 20 tokens: make documents longer"):
        made(make_document, Facts(stated=8, repeated=0, distance=3), 0, length=20)
    with pytest.raises(UserError, match="has 500 words of the vocabulary, but a document needs 501: use more text"):
        made(make_document, Facts(stated=0, repeated=0, distance=3), 0, length=501)


@pytest.mark.parametrize(("before", "between"), [((), ()), (("a",), ()), (("c", "d"), ("e",))])
def test_a_question_in_another_form_has_no_mark_and_its_answer_at_the_end(before, between):
    template = VOCABULARY.template(Form(before=before, between=between, stated=5))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        facts = Facts(stated=5, repeated=0, distance=20)
        document = make_question(Prose(WORDS, rng), VOCABULARY, facts, 150, 0.5, rng, template)
        ids = document.token_ids
        assert (ids != VOCABULARY.mark).all()
        assert ids[-1] >= VOCABULARY.first_value
        keys = np.flatnonzero((ids >= VOCABULARY.first_key) & (ids < VOCABULARY.first_value))
        assert len(keys) == 6
        for place in keys:
            assert tuple(ids[place - len(before) : place]) == template.before
            value = place + 1 + len(between)
            assert tuple(ids[place + 1 : value]) == template.between
            assert (ids[value] - VOCABULARY.first_value) // VOCABULARY.values == ids[place] - VOCABULARY.first_key
        (asked,) = [place for place in keys[:-1] if ids[place] == ids[keys[-1]]]
        assert ids[asked + 1 + len(between)] == ids[-1]
        assert asked - len(before) == round(0.5 * (150 - template.size - 20))


def test_values_of_a_key_and_words_that_have_no_id():
    values = np.array([VOCABULARY.fact(key, key % 5)[2] for key in range(8)])
    for key, row in enumerate(VOCABULARY.values_like(values)):
        assert row.tolist() == [VOCABULARY.fact(key, value)[2] for value in range(5)]
    with pytest.raises(UserError, match="the vocabulary has no word 'nosuch': write facts with more frequent words"):
        VOCABULARY.template(Form(before=("nosuch",), stated=1))
