"""Batches, questions, key tokens and the numbers at a checkpoint, against naive code."""

import math

import numpy as np
import pytest

from longlens.errors import UserError
from longlens.study.longce.documents import Vocabulary
from longlens.study.longce.run import Questions, held_out_questions, key_tokens, make_batches, measure
from tests.study.longce.toys import toy_study

VOCABULARY = Vocabulary(words=tuple("abcdefghij"), keys=4, values=3)
DOCUMENTS = [np.arange(200) % 10, np.arange(3, 150) % 7]
STUDY = toy_study()


def batches(seed, **changes):
    training = STUDY.training.replace(**changes)
    return list(make_batches(training, VOCABULARY, DOCUMENTS, 64, seed))


def test_batches_are_a_function_of_the_seed_whatever_the_number_of_steps():
    short, long = batches([1, 2], steps=3), batches([1, 2], steps=6)
    assert [len(short), len(long)] == [3, 6]
    for one, other in zip(short, long[:3], strict=True):
        assert (one.token_ids == other.token_ids).all()
        assert (one.answers == other.answers).all()
    assert any((a.token_ids != b.token_ids).any() for a, b in zip(short, batches([1, 3], steps=3), strict=True))


def test_answers_of_a_batch_are_values_that_stand_there_twice():
    for batch in batches([0], steps=20, documents=3):
        assert batch.token_ids.shape == batch.answers.shape == (3, 64)
        assert (batch.answers.sum(axis=1) == STUDY.training.facts.repeated).all()
        for row, column in zip(*np.nonzero(batch.answers), strict=True):
            value = batch.token_ids[row, column]
            assert value >= VOCABULARY.first_value
            assert (batch.token_ids[row] == value).sum() == 2


def test_drills_are_a_share_of_the_documents_of_the_first_half_of_the_steps():
    made = batches([0], steps=6, documents=4, drills=0.5)
    drilled = [int(((batch.token_ids < VOCABULARY.mark).sum(axis=1) == 0).sum()) for batch in made]
    assert drilled == [2, 2, 2, 0, 0, 0]


def test_questions_are_the_same_each_time_and_short_text_holds_no_facts():
    one, other = (held_out_questions(STUDY, VOCABULARY, DOCUMENTS) for _ in range(2))
    assert (one.long == other.long).all()
    assert one.long.shape == (4, STUDY.length)
    assert one.short.shape == (4, STUDY.model.length)
    assert (one.short < VOCABULARY.mark).all()
    asked = [np.flatnonzero(row == row[-1])[0] for row in one.long]
    assert asked == sorted(asked)
    assert asked[0] == 2
    assert asked[-1] == STUDY.length - 1 - STUDY.evaluation.facts.distance


def test_key_tokens_are_those_of_equation_4():
    long = np.array([[np.nan, -1.0, -3.0, -0.5]], dtype=np.float32)
    short = np.array([[np.nan, np.nan, -9.0, -2.6]], dtype=np.float32)
    assert key_tokens(long, short, alpha=2.0, beta=-2.0).tolist() == [[False, False, False, True]]
    assert key_tokens(long, short, alpha=2.0, beta=-4.0).tolist() == [[False, False, True, True]]
    with pytest.raises(UserError, match="no token has a short score: the short context is not shorter"):
        key_tokens(long, np.full_like(long, np.nan), alpha=2.0, beta=-2.0)


def test_a_checkpoint_is_measured_as_by_hand():
    rng = np.random.default_rng(0)
    questions = Questions(long=np.tile(np.arange(6), (8, 1)), short=np.zeros((8, 3), dtype=np.int64))
    long, short = (-rng.random(shape).astype(np.float32) for shape in ((8, 6), (8, 3)))
    long[:, 0] = short[:, 0] = np.nan
    keys = np.zeros((8, 6), dtype=bool)
    keys[0, 3] = keys[5, 1] = True
    predicted = np.array([5, 0, 5, 5, 5, 1, 2, 3])
    found = measure(questions, long, short, predicted, keys)
    assert found["accuracy"] == 4 / 8
    assert found["accuracy_by_depth"] == [0.5, 1.0, 0.5, 0.0]
    assert found["answer_nll"] == pytest.approx(-sum(map(float, long[:, 5])) / 8)
    assert found["longppl"] == pytest.approx(math.exp(-(float(long[0, 3]) + float(long[5, 1])) / 2))
    assert found["ppl"] == pytest.approx(math.exp(-sum(map(float, long[:, 1:].ravel())) / 40))
    assert found["short_ppl"] == pytest.approx(math.exp(-sum(map(float, short[:, 1:].ravel())) / 16))
    assert measure(questions, long, short, predicted, keys & False)["longppl"] is None


def test_documents_that_are_too_short_for_questions_are_refused():
    with pytest.raises(UserError, match="one part of the text has 30 words of the vocabulary, and a document needs 64"):
        held_out_questions(STUDY, VOCABULARY, [np.arange(30) % 10])
