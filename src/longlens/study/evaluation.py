"""Held-out documents with a question at their end, and the numbers that scores of them give. No model is run here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.influence import hard_influence
from longlens.study.facts import Facts, Prose, make_document, make_drill, make_question
from longlens.study.settings import Study, Training
from longlens.study.text import Ids, Vocabulary

Floats = npt.NDArray[np.float32]
QUARTERS = 4


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is scored at checkpoints.

    Attributes:
        long: ``(N, n)`` token ids; the last token is the answer, whose fact stands nearer from document to document.
        short: ``(N, L0)`` token ids of prose alone, as long as the model's own context.
    """

    long: Ids
    short: Ids


def held_out_questions(study: Study, vocabulary: Vocabulary, documents: Sequence[Ids]) -> Questions:
    """What is scored at checkpoints: the same for every run, and no run has seen it.

    Raises:
        UserError: The documents are too few.
    """
    rng, count = np.random.default_rng(study.base_seed), study.evaluation.documents
    facts = study.evaluation.facts
    long = make_questions(facts, vocabulary, documents, length=study.length, count=count, rng=rng)
    prose = Prose(documents, rng)
    return Questions(long=long, short=np.stack([prose.take(study.model.length) for _ in range(count)]))


def make_questions(
    facts: Facts,
    vocabulary: Vocabulary,
    documents: Sequence[Ids],
    *,
    length: int,
    count: int,
    rng: np.random.Generator,
) -> Ids:
    """``(count, length)`` token ids: `make_question` at equally spaced depths, from 0 to 1."""
    prose = Prose(documents, rng)
    depths = np.linspace(0, 1, count)
    return np.stack([make_question(prose, vocabulary, facts, length, float(d), rng).token_ids for d in depths])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Documents of a training step.

    Attributes:
        token_ids: ``(B, n)``.
        answers: ``(B, n)`` bool: values of repeated facts.
    """

    token_ids: Ids
    answers: npt.NDArray[np.bool_]


def make_batches(
    training: Training, vocabulary: Vocabulary, documents: Sequence[Ids], length: int, seed: Sequence[int]
) -> Iterator[Batch]:
    """The documents of each step; a function of the seed alone, so that all arms of a seed learn from the same ones.

    Raises:
        UserError: The documents are too few, or the facts do not fit.
    """
    rng = np.random.default_rng(seed)
    prose = Prose(documents, rng)
    for step in range(training.steps):
        drills = round(training.drills * training.documents) if 2 * step < training.steps else 0
        rows = [make_drill(vocabulary, length, rng) for _ in range(drills)]
        rows += [
            make_document(prose, vocabulary, training.facts, length, rng) for _ in range(training.documents - drills)
        ]
        answers = np.zeros((len(rows), length), dtype=bool)
        for row, document in enumerate(rows):
            answers[row, [answer.position for answer in document.answers]] = True
        yield Batch(token_ids=np.stack([row.token_ids for row in rows]), answers=answers)


def key_tokens(long: Floats, short: Floats, *, alpha: float, beta: float) -> npt.NDArray[np.bool_]:
    """``(N, n)`` bool: key tokens by the evaluator's log-probabilities under both contexts (eq. 4)."""
    if not np.isfinite(short).any():
        raise UserError("no token has a short score: the short context is not shorter than the documents")
    return hard_influence(long - short, long, alpha=alpha, beta=beta)


def measure(
    questions: Questions, long: Floats, short: Floats, predicted: Ids, keys: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """What one checkpoint is worth.

    Args:
        questions: N documents of either kind.
        long: ``(N, n)`` nats, of `Questions.long`.
        short: ``(N, L0)`` nats, of `Questions.short`.
        predicted: ``(N,)`` the most probable last token of each long document, of the whole vocabulary.
        keys: ``(N, n)`` bool, the evaluator's key tokens.

    Returns:
        ``accuracy`` (of the answer, over the whole vocabulary), ``accuracy_by_depth`` (over quarters of the documents,
        the farthest facts first), ``answer_nll`` (nats), ``longppl``, ``ppl`` and ``short_ppl``.
    """
    right = predicted == questions.long[:, -1]
    return {
        "accuracy": float(right.mean()),
        "accuracy_by_depth": [float(part.mean()) for part in np.array_split(right, QUARTERS)],
        "answer_nll": float(-long[:, -1].mean(dtype=np.float64)),
        "longppl": _perplexity(long[keys]),
        "ppl": _perplexity(long[:, 1:]),
        "short_ppl": _perplexity(short[:, 1:]),
    }


def _perplexity(logprobs: Floats) -> float | None:
    return float(np.exp(-logprobs.mean(dtype=np.float64))) if logprobs.size else None
