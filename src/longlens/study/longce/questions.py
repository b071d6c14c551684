"""Defines what is scored: questions in the trained form and in others, documents for LongPPL, and short prose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from longlens.errors import UserError
from longlens.keytokens.influence import hard_influence
from longlens.losses.settings import LongCE
from longlens.study.longce import model as models
from longlens.study.longce.documents import (
    Deduplicated,
    FactBatch,
    FactDocument,
    Facts,
    Ids,
    Prose,
    Template,
    Text,
    Vocabulary,
    deduplicate,
    make_document,
    make_drill,
    make_question,
    make_vocabulary,
)
from longlens.study.longce.settings import StudyEvaluation, StudyTraining, Words

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
TRAINED = "trained"
"""The form of facts in training."""
DIGITS = 4
"""Decimals of numbers that are stored per question."""


class SeedText(NamedTuple):
    """The text of one seed as tokens.

    Attributes:
        vocabulary: Vocabulary of its training text.
        clean: The training text, without the spans that it shares with held-out text.
        scored: Documents for testing, or for development.
    """

    vocabulary: Vocabulary
    clean: Deduplicated
    scored: list[Ids]


def seed_text(text: Text, words: Words, seed: int, *, development: bool) -> SeedText:
    """Splits the text for a seed, and encodes it.

    Args:
        text: The whole text.
        words: The vocabulary and the split.
        seed: Determines the documents for testing.
        development: Whether to score development documents.
    """
    parts = text.split(words.held_out, seed)
    vocabulary = make_vocabulary(parts["train"], words=words.words, keys=words.keys, values=words.values)
    documents = {name: vocabulary.encode(found) for name, found in parts.items()}
    clean = deduplicate(documents["train"], [*documents["test"], *documents["development"]])
    return SeedText(vocabulary, clean, documents["development" if development else "test"])


class HeldOut(NamedTuple):
    """The scored documents of one seed, each as ``(N, n)`` token ids.

    Attributes:
        forms: Questions by name of the form, `TRAINED` first: the last token is the answer; the distance to its fact
            decreases from document to document.
        documents: Long documents as in training, for LongPPL.
        answers: ``(N, n)`` bool: values of repeated facts in these.
        short: Only prose, as long as the model's own context.
    """

    forms: dict[str, Ids]
    documents: Ids
    answers: Bools
    short: Ids


def held_out(
    evaluation: StudyEvaluation, text: SeedText, seed: int, *, training: Facts, length: int, short: int
) -> HeldOut:
    """Creates the scored documents of one seed, which are the same for all its arms.

    Args:
        evaluation: What is scored, and the numbers of documents.
        text: Text of the seed.
        seed: Random seed.
        training: Facts of training documents, which documents for LongPPL also have.
        length: Tokens of long documents.
        short: Trained length of the model, tokens.

    Raises:
        UserError: There are too few documents.
    """
    vocabulary, documents = text.vocabulary, text.scored
    rng = np.random.default_rng([_QUESTIONS, seed])
    facts, many = evaluation.facts, evaluation.form_documents
    forms = {TRAINED: questions(facts, vocabulary, documents, length, evaluation.documents, rng)}
    for name, form in evaluation.forms.items():
        template = vocabulary.template(form)
        forms[name] = questions(facts.replace(stated=form.stated), vocabulary, documents, length, many, rng, template)
    prose = Prose(documents, rng)
    batch = to_batch([make_document(prose, vocabulary, training, length, rng) for _ in range(evaluation.long)])
    return HeldOut(
        forms=forms,
        documents=batch.token_ids,
        answers=batch.answers,
        short=np.stack([prose.sample(short) for _ in range(evaluation.documents)]),
    )


def own_forms(
    evaluation: StudyEvaluation, text: SeedText, *, distance: int, length: int, rng: np.random.Generator
) -> dict[str, Ids]:
    """Creates questions of all forms that fit into the trained length of the model, `TRAINED` first.

    Args:
        evaluation: Its forms, with fewer facts if they do not fit.
        text: Text of the seed.
        distance: Distance of the nearest fact, tokens.
        length: Length of a document, tokens.
        rng: Random number generator.
    """
    facts = evaluation.facts.replace(distance=distance, repeated=0)
    forms: dict[str, tuple[Facts, Template | None]] = {TRAINED: (facts, None)}
    for name, form in evaluation.forms.items():
        template = text.vocabulary.template(form)
        stated = max(1, min(form.stated, length // (4 * template.size)))
        forms[name] = facts.replace(stated=stated, distance=max(distance, template.size)), template
    return {
        name: questions(stating, text.vocabulary, text.scored, length, evaluation.form_documents, rng, written)
        for name, (stating, written) in forms.items()
    }


def questions(
    facts: Facts,
    vocabulary: Vocabulary,
    documents: Sequence[Ids],
    length: int,
    count: int,
    rng: np.random.Generator,
    template: Template | None = None,
) -> Ids:
    """``(count, length)`` token ids: `make_question` at equally spaced depths, from 0 to 1."""
    prose = Prose(documents, rng)
    depths = np.linspace(0, 1, count)
    return np.stack(
        [make_question(prose, vocabulary, facts, length, float(d), rng, template).token_ids for d in depths]
    )


def make_batches(
    training: StudyTraining, vocabulary: Vocabulary, documents: Sequence[Ids], length: int, seed: Sequence[int]
) -> Iterator[FactBatch]:
    """Yields the documents of each step, which depend only on the seed, so that all arms of a seed use the same ones.

    Raises:
        UserError: There are too few documents, or the facts do not fit.
    """
    rng = np.random.default_rng(seed)
    prose = Prose(documents, rng)
    for step in range(training.steps):
        drills = round(training.drills * training.documents) if 2 * step < training.steps else 0
        rows = [make_drill(vocabulary, length, rng) for _ in range(drills)]
        rows += [
            make_document(prose, vocabulary, training.facts, length, rng) for _ in range(training.documents - drills)
        ]
        yield to_batch(rows)


def to_batch(documents: Sequence[FactDocument]) -> FactBatch:
    """Combines documents of the same length, and the positions of their answers."""
    token_ids = np.stack([document.token_ids for document in documents])
    answers = np.zeros(token_ids.shape, dtype=bool)
    for row, document in enumerate(documents):
        answers[row, [answer.position for answer in document.answers]] = True
    return FactBatch(token_ids=token_ids, answers=answers)


def key_tokens(model: Any, documents: Ids, longce: LongCE, *, alpha: float, beta: float) -> Bools:
    """``(N, n)`` bool: key tokens by a model's log-probabilities under both contexts (eq. 4).

    Raises:
        UserError: No token has a short-context score.
    """
    short, long = models.score_under_short_context(model, documents, longce), models.score(model, documents).long
    if not np.isfinite(short).any():
        raise UserError("no token has a short-context score: the short context is not shorter than the documents")
    return hard_influence(long - short, long, alpha=alpha, beta=beta)


def answered(model: Any, vocabulary: Vocabulary, documents: Ids) -> tuple[dict[str, Any], Floats]:
    """Computes a model's answers to the questions of one form, and its log-probabilities of all tokens.

    Args:
        model: A model whose context covers the whole document.
        vocabulary: Vocabulary of the ids.
        documents: ``(N, n)`` token ids; the last token is the answer.

    Returns:
        ``accuracy`` (over the whole vocabulary), ``choice`` (among the values of the key; chance is 1 / values),
        ``answer_nll`` (nats), ``choice_nll`` (nats, of the answer among these values) and ``questions``, all four of
        each question.
    """
    found = models.score(model, documents)
    answers = documents[:, -1]
    values = vocabulary.values_like(answers)
    logits = np.take_along_axis(found.last, values, axis=1).astype(np.float64)
    chosen = np.take_along_axis(values, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    each = {
        "accuracy": (found.last.argmax(axis=1) == answers).astype(int),
        "choice": (chosen == answers).astype(int),
        "answer_nll": -found.long[:, -1].astype(np.float64),
        "choice_nll": logsumexp(logits, axis=1) - logits[values == answers[:, None]],
    }
    return {
        **{name: float(numbers.mean()) for name, numbers in each.items()},
        "questions": {name: np.round(numbers, DIGITS).tolist() for name, numbers in each.items()},
    }, found.long


def measure(
    model: Any, vocabulary: Vocabulary, held: HeldOut, keys: Bools | None, *, all_of_it: bool
) -> dict[str, Any]:
    """Measures one checkpoint.

    Args:
        model: The extended model.
        vocabulary: Vocabulary of the ids.
        held: The scored documents.
        keys: ``(N, n)`` bool, the evaluator's key tokens of `HeldOut.documents`; required with `all_of_it`.
        all_of_it: Whether to also score other forms, documents and short prose.

    Returns:
        ``forms``: `answered` by name; ``ppl`` over all tokens of the questions in the trained form; and, with
        `all_of_it`, for the long documents ``prose_ppl`` (over their words, without facts) and ``longppl`` (None
        without key tokens), and ``short_ppl``.
    """
    trained, long = answered(model, vocabulary, held.forms[TRAINED])
    found: dict[str, Any] = {"forms": {TRAINED: trained}, "ppl": _perplexity(long[:, 1:])}
    if not all_of_it or keys is None:
        return found
    for name, documents in held.forms.items():
        if name != TRAINED:
            found["forms"][name], _ = answered(model, vocabulary, documents)
    long, short = models.score(model, held.documents).long, models.score(model, held.short).long
    words = held.documents < vocabulary.mark
    return found | {
        "prose_ppl": _perplexity(long[:, 1:][words[:, 1:]]),
        "longppl": _perplexity(long[keys]),
        "short_ppl": _perplexity(short[:, 1:]),
    }


_QUESTIONS = 3
"""Separates these random numbers from other uses of a seed (`run`)."""


def _perplexity(logprobs: Floats) -> float | None:
    return float(np.exp(-logprobs.mean(dtype=np.float64))) if logprobs.size else None
