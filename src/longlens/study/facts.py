"""Documents of prose with sparse facts: a fact is stated once and some are repeated far behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.study.text import Ids, Vocabulary

FACT = 3
"""Tokens of a fact: the mark, its key, its value."""
_TRIES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Facts of a document: ``mark key value``, with a key that no other fact of the document has.

    Attributes:
        stated: Facts that are stated.
        repeated: How many of them are stated again; the value of the second statement is an answer, which only the
            first one tells.
        distance: Tokens from a statement to its repetition, at least.
    """

    stated: int
    repeated: int
    distance: int

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 <= self.repeated <= self.stated:
            raise UserError(f"repeated is {self.repeated} and stated {self.stated}: expected 0 <= repeated <= stated")
        if self.distance < FACT:
            raise UserError(f"distance is {self.distance}; a fact has {FACT} tokens, so expected at least {FACT}")

    def check(self, length: int) -> None:
        """Refuses documents that are too short for their facts."""
        if length < max(self.distance + FACT, 2 * (FACT + 1) * (self.stated + self.repeated)):
            raise UserError(
                f"documents of {length} tokens have no room for {self.stated} facts, {self.repeated} of them repeated "
                f"{self.distance} tokens behind: make documents longer, or facts fewer or nearer"
            )


class Answer(NamedTuple):
    """The value of a repeated fact: its position, and how many tokens before it stands what tells it."""

    position: int
    distance: int


class FactDocument(NamedTuple):
    """Token ids ``(n,)`` and the answers in them."""

    token_ids: Ids
    answers: tuple[Answer, ...]


class Prose:
    """Documents one behind the other in a random order, and places in them."""

    def __init__(self, documents: Sequence[Ids], rng: np.random.Generator) -> None:
        """``rng`` decides the order, and then the places."""
        self._ids = np.concatenate([documents[index] for index in rng.permutation(len(documents))])
        self._rng = rng

    def take(self, length: int) -> Ids:
        """So many tokens from a random place.

        Raises:
            UserError: There are not so many.
        """
        if len(self._ids) < length:
            raise UserError(
                f"one part of the text has {len(self._ids):,} words of the vocabulary, and a document needs "
                f"{length:,}: give more text"
            )
        start = self._rng.integers(0, len(self._ids) - length + 1)
        taken: Ids = self._ids[start : start + length].copy()
        return taken


def make_document(
    prose: Prose, vocabulary: Vocabulary, facts: Facts, length: int, rng: np.random.Generator
) -> FactDocument:
    """Prose in which facts stand in place of words, anywhere, with a word at least between two of them.

    Args:
        prose: Where the words come from.
        vocabulary: What the ids are.
        facts: How many facts, and how far apart.
        length: n, tokens of the document.
        rng: Decides keys, values and places.

    Raises:
        UserError: The facts do not fit.
    """
    last = length - FACT

    def pair() -> tuple[int, ...]:
        apart = int(rng.integers(facts.distance, last + 1))
        first = int(rng.integers(0, last - apart + 1))
        return first, first + apart

    def single() -> tuple[int, ...]:
        return (int(rng.integers(0, last + 1)),)

    draws = [pair] * facts.repeated + [single] * (facts.stated - facts.repeated)
    return _written(prose.take(length), vocabulary, draws, rng)


def make_question(
    prose: Prose, vocabulary: Vocabulary, facts: Facts, length: int, depth: float, rng: np.random.Generator
) -> FactDocument:
    """As `make_document`, but the last tokens ask for one fact, which stands at a depth (as LongEval asks for a line).

    Args:
        prose: Where the words come from.
        vocabulary: What the ids are.
        facts: How many facts are stated, the one that is asked for among them.
        length: n, tokens of the document.
        depth: Where it stands: 0 at the start of the document, 1 at `Facts.distance` before the question.
        rng: Decides keys, values and the other places.

    Raises:
        UserError: The facts do not fit.
    """
    last = length - FACT
    asked = (round(depth * (last - facts.distance)), last)
    draws = [lambda: asked] + [lambda: (int(rng.integers(0, last)),)] * (facts.stated - 1)
    return _written(prose.take(length), vocabulary, draws, rng)


DRILLED = (3, 10)
"""How many keys a drill has, at least and at most."""


def make_drill(vocabulary: Vocabulary, length: int, rng: np.random.Generator) -> FactDocument:
    """A document of facts alone, a few of them stated again and again; it has no answers that count.

    From prose with some facts in it a small model learns to retrieve much later.
    """
    count = int(rng.integers(min(DRILLED[0], vocabulary.keys), min(DRILLED[1], vocabulary.keys) + 1))
    keys = rng.choice(vocabulary.keys, count, replace=False)
    values = rng.integers(0, vocabulary.values, count)
    facts = np.array([vocabulary.fact(int(key), int(value)) for key, value in zip(keys, values, strict=True)])
    return FactDocument(facts[rng.integers(0, count, length // FACT + 1)].ravel()[:length], ())


def _written(
    ids: Ids, vocabulary: Vocabulary, draws: Sequence[Callable[[], tuple[int, ...]]], rng: np.random.Generator
) -> FactDocument:
    """Writes a fact for each of ``draws``, which draw the places it stands at until these are free."""
    keys = rng.choice(vocabulary.keys, len(draws), replace=False)
    values = rng.integers(0, vocabulary.values, len(draws))
    taken = np.zeros(len(ids), dtype=bool)
    answers = []
    for key, value, draw in zip(keys, values, draws, strict=True):
        places = _free(taken, draw)
        for place in places:
            ids[place : place + FACT] = vocabulary.fact(int(key), int(value))
            taken[place : place + FACT] = True
        answers += [Answer(place + FACT - 1, place - places[0]) for place in places[1:]]
    return FactDocument(ids, tuple(sorted(answers)))


def _free(taken: npt.NDArray[np.bool_], draw: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    for _ in range(_TRIES):
        places = draw()
        if not any(taken[max(0, place - 1) : place + FACT + 1].any() for place in places):
            return places
    raise UserError(f"no room for a fact in {len(taken)} tokens: make documents longer, or facts fewer or nearer")
