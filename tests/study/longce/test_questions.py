"""Batches, questions, key tokens and the numbers at a checkpoint, against naive code."""

import math

import numpy as np
import pytest
import torch

from longlens.errors import UserError
from longlens.losses.settings import LongCE
from longlens.study.longce import model as models
from longlens.study.longce.documents import Deduplicated, Vocabulary
from longlens.study.longce.questions import (
    HeldOut,
    SeedText,
    answered,
    held_out,
    key_tokens,
    make_batches,
    measure,
)
from tests.study.longce.toys import toy_study

VOCABULARY = Vocabulary(words=tuple("abcdefghij"), keys=4, values=3)
DOCUMENTS = [np.arange(200) % 10, np.arange(3, 150) % 7]
STUDY = toy_study()


def held_of(seed, documents=DOCUMENTS):
    text = SeedText(VOCABULARY, Deduplicated([], 0.0, 0.0), documents)
    lengths = {"length": STUDY.length, "short": STUDY.model.length}
    return held_out(STUDY.evaluation, text, seed, training=STUDY.training.facts, **lengths)


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


def test_questions_are_the_same_for_a_seed_and_others_for_another():
    one, again, other = (held_of(seed) for seed in (1, 1, 2))
    assert list(one.forms) == ["trained", "lines"]
    for name, count in (("trained", 4), ("lines", 3)):
        assert (one.forms[name] == again.forms[name]).all()
        assert (one.forms[name] != other.forms[name]).any()
        assert one.forms[name].shape == (count, STUDY.length)
    assert one.short.shape == (4, STUDY.model.length)
    assert one.documents.shape == one.answers.shape == (2, STUDY.length)
    assert (one.documents[one.answers] >= VOCABULARY.first_value).all()
    assert one.answers.sum() == 2 * STUDY.training.facts.repeated
    assert (one.short < VOCABULARY.mark).all()
    asked = [np.flatnonzero(row == row[-1])[0] for row in one.forms["trained"]]
    assert asked == sorted(asked)
    assert asked[0] == 2
    assert asked[-1] == STUDY.length - 1 - STUDY.evaluation.facts.distance
    assert (one.forms["lines"] != VOCABULARY.mark).all()


def naive(model, ids):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids), use_cache=False).logits.log_softmax(-1).double().numpy()


def test_key_tokens_are_those_of_equation_4():
    model = models.make_model(STUDY.model, VOCABULARY, 3)
    ids = np.random.default_rng(0).integers(0, VOCABULARY.size, (3, 40))
    found = key_tokens(model, ids, LongCE(context=8, stride=100), alpha=0.0, beta=-3.2)
    long = np.take_along_axis(naive(model, ids)[:, :-1], ids[:, 1:, None], axis=2)[..., 0]
    assert not found[:, :9].any()  # token 8 has all its document as context
    assert (long[:, 8:][found[:, 9:]] > -3.2).all()
    for row, place in zip(*np.nonzero(found), strict=True):
        short = long[row, place - 1]  # one window from the document's start on: LSD is 0, which is not above alpha
        assert short < long[row, place - 1]
    many = key_tokens(model, ids, LongCE(context=4, stride=1), alpha=0.0, beta=-100.0)
    for row in range(3):
        for place in range(4, 40):
            window = naive(model, ids[row : row + 1, place - 4 : place + 1])[0, -2, ids[row, place]]
            if abs(long[row, place - 1] - window) > 1e-4:
                assert many[row, place] == (long[row, place - 1] - window > 0)
    with pytest.raises(UserError, match="no token has a short-context score: the short context is not shorter"):
        key_tokens(model, ids, LongCE(context=40, stride=8), alpha=2.0, beta=-2.0)


def test_a_checkpoint_is_measured_as_by_hand():
    model, held = models.make_model(STUDY.model, VOCABULARY, 3), held_of(1)
    keys = np.zeros(held.documents.shape, dtype=bool)
    keys[0, 3] = keys[1, 9] = True
    found = measure(model, VOCABULARY, held, keys, all_of_it=True)
    for name, ids in held.forms.items():
        last, answers = naive(model, ids)[:, -2], ids[:, -1]
        nll = [-float(row[answer]) for row, answer in zip(last, answers, strict=True)]
        form = found["forms"][name]
        assert form["answer_nll"] == pytest.approx(np.mean(nll), rel=1e-5)
        assert form["questions"]["answer_nll"] == pytest.approx(nll, abs=1e-4)
        assert form["accuracy"] == np.mean([row.argmax() == answer for row, answer in zip(last, answers, strict=True)])
        choices, right = [], []
        for row, answer in zip(last, answers, strict=True):
            first = VOCABULARY.first_value + (answer - VOCABULARY.first_value) // 3 * 3
            values = row[first : first + 3]
            choices.append(math.log(sum(map(math.exp, values))) - row[answer])
            right.append(first + int(values.argmax()) == answer)
        assert form["choice_nll"] == pytest.approx(np.mean(choices), rel=1e-5)
        assert form["choice"] == np.mean(right)
    ids = held.documents
    long = np.take_along_axis(naive(model, ids)[:, :-1], ids[:, 1:, None], axis=2)[..., 0]
    assert found["longppl"] == pytest.approx(math.exp(-(long[0, 2] + long[1, 8]) / 2), rel=1e-5)
    words = [long[row, at - 1] for row in range(2) for at in range(1, 64) if ids[row, at] < VOCABULARY.mark]
    assert len(words) < long.size
    assert found["prose_ppl"] == pytest.approx(math.exp(-np.mean(words)), rel=1e-5)
    assert measure(model, VOCABULARY, held, keys & False, all_of_it=True)["longppl"] is None
    part = measure(model, VOCABULARY, held, None, all_of_it=False)
    assert part == {"forms": {"trained": found["forms"]["trained"]}, "ppl": found["ppl"]}


def test_a_choice_is_among_the_values_of_the_asked_key():
    ids = np.tile(np.array([0, 1, *VOCABULARY.fact(2, 1), 3, *VOCABULARY.fact(2, 1)]), (2, 1))

    class Sure:
        """Prefers a word to everything, and value 1 of key 2 to the others of that key."""

    logits = np.zeros((2, VOCABULARY.size), dtype=np.float32)
    logits[:, 0], logits[:, VOCABULARY.fact(2, 1)[2]], logits[:, VOCABULARY.fact(1, 0)[2]] = 9.0, 1.0, 5.0
    scores = models.TokenLogprobs(long=np.full(ids.shape, -1.0, dtype=np.float32), last=logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "score", lambda model, documents: scores)
        found, _ = answered(Sure(), VOCABULARY, ids)
    assert (found["accuracy"], found["choice"]) == (0.0, 1.0)
    assert found["choice_nll"] == pytest.approx(math.log(math.e + 2) - 1)


def test_held_out_text_that_is_too_short_is_refused():
    with pytest.raises(UserError, match="has 20 words of the vocabulary, but a document needs 64: use more text"):
        held_of(1, [np.arange(20) % 10])
    assert HeldOut._fields == ("forms", "documents", "answers", "short")
