"""Creates documents of prose with sparse facts: reads words, builds a vocabulary, and writes facts over words."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from longlens.corpus import read_documents
from longlens.errors import UserError, shown
from longlens.settings.recipe import Integer, Settings

Ids = npt.NDArray[np.int64]
SPLITS = ("development", "test", "train")
# Some installations omit these modules, so that the text would depend on the machine.
LEFT_OUT = frozenset(
    ("dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "tkinter", "turtledemo")
)
FACT = 3
"""Number of tokens of a fact: the mark, its key, its value."""
SHARED = 20
"""Minimum length in tokens of spans that training text must not share with held-out text."""
DRILL_KEYS = (3, 10)
"""Minimum and maximum number of keys of a drill."""
_TRIES = 1000
_WORD = re.compile(r"[a-z]+")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Documents as words: sequences of the letters a to z, after lower-casing; all other characters only separate them.

    Attributes:
        name: Description of the text, without the path that it was read from.
        documents: Words by the document's name, sorted by name.
    """

    name: str
    documents: dict[str, tuple[str, ...]]

    @property
    def sha256(self) -> str:
        """Hash of all words in order, with one line per document."""
        lines = "\n".join(" ".join(words) for words in self.documents.values())
        return hashlib.sha256(lines.encode()).hexdigest()

    def split(self, share: float, seed: int) -> dict[str, list[tuple[str, ...]]]:
        """Splits the documents for development, testing and training, without overlap.

        In the order of the hashes of their names, documents are used for development until they have ``share`` of all
        words, independently of the seed. Of the others, in an order that depends on the seed, documents are used for
        testing up to the same share. The rest is for training.

        Args:
            share: Share of the words for development, and for testing.
            seed: Determines the documents for testing.

        Returns:
            Documents by the names in `SPLITS`.
        """
        wanted = share * sum(len(words) for words in self.documents.values())
        parts: dict[str, list[tuple[str, ...]]] = {name: [] for name in SPLITS}
        left = list(self.documents)
        for part, salt in (("development", ""), ("test", f"{seed}/")):
            taken = 0
            ordered = sorted(left, key=lambda name: hashlib.sha256(f"{salt}{name}".encode()).hexdigest())
            for name in ordered:
                if taken >= wanted:
                    break
                parts[part].append(self.documents[name])
                taken += len(self.documents[name])
                left.remove(name)
        parts["train"] = [self.documents[name] for name in sorted(left)]
        return parts


def read_text(source: str | os.PathLike[str] | None) -> Text:
    """Reads the text of a study.

    Args:
        source: A file or a directory as in `read_documents`; by default the standard library of the running Python.

    Raises:
        UserError: The source cannot be read, or contains no words.
    """
    if source is None:
        return _make_text(f"standard library of Python {_version()}", _standard_library())
    documents = {document.id: document.text for document in read_documents([source])}
    return _make_text(Path(source).name or str(source), documents)


def _version() -> str:
    return ".".join(sysconfig.get_python_version().split(".")[:2])


def _make_text(name: str, documents: dict[str, str]) -> Text:
    words = {key: tuple(_WORD.findall(text.lower())) for key, text in sorted(documents.items())}
    found = {key: value for key, value in words.items() if value}
    if not found:
        raise UserError(f"{shown(name)} has no words of the letters a to z: set another `text`")
    return Text(name=name, documents=found)


def _standard_library() -> dict[str, str]:
    from pydoc_data import topics

    root = Path(sysconfig.get_path("stdlib"))
    documents = {f"topic {key}": text for key, text in topics.topics.items()}
    for path in root.rglob("*.py"):
        place = path.relative_to(root)
        if LEFT_OUT.isdisjoint(place.parts):
            documents[place.as_posix()] = "\n\n".join(_docstrings(path.read_bytes()))
    if len(documents) == len(topics.topics):
        raise UserError("this Python has no source files of its standard library: set `text` to prose")
    return documents


def _docstrings(source: bytes) -> Iterable[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    nodes = (node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
    return (text for node in nodes if (text := ast.get_docstring(node)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """A vocabulary: words, the mark that starts a fact, keys, and the values of each key, with ids from 0 to size - 1.

    Each key has its own values, as for example a color or a city has, so that one attention layer can find the value of
    a key. Values that all keys share would need a circuit of two layers, which takes many times the training.

    Attributes:
        words: Words with an id; other words are removed from the text.
        keys: Number of keys.
        values: Number of values of each key.
    """

    words: tuple[str, ...]
    keys: int
    values: int

    @property
    def mark(self) -> int:
        """Id of the mark; smaller ids are words."""
        return len(self.words)

    @property
    def first_key(self) -> int:
        """Id of the first key."""
        return self.mark + 1

    @property
    def first_value(self) -> int:
        """Id of the first value of the first key."""
        return self.first_key + self.keys

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.first_value + self.keys * self.values

    def fact(self, key: int, value: int) -> tuple[int, int, int]:
        """Returns the tokens of a fact: the mark, the key, the value; keys and values are counted from 0."""
        return self.mark, self.first_key + key, self.first_value + key * self.values + value

    def values_like(self, value: Ids) -> Ids:
        """``(..., values)``: the ids of all values of the key to which a value id belongs."""
        key = (value - self.first_value) // self.values
        return (self.first_value + key * self.values)[..., None] + np.arange(self.values)

    def template(self, form: Form) -> Template:
        """Encodes a form of facts as ids.

        Raises:
            UserError: A word has no id.
        """
        ids = {word: index for index, word in enumerate(self.words)}
        for word in (*form.before, *form.between):
            if word not in ids:
                raise UserError(f"the vocabulary has no word {shown(word)}: write facts with more frequent words")
        return Template(tuple(ids[word] for word in form.before), tuple(ids[word] for word in form.between))

    def encode(self, documents: Iterable[Sequence[str]]) -> list[Ids]:
        """Returns the ids of the words of each document that are in the vocabulary."""
        ids = {word: index for index, word in enumerate(self.words)}
        return [np.array([ids[word] for word in words if word in ids], dtype=np.int64) for words in documents]


def make_vocabulary(documents: Iterable[Sequence[str]], *, words: int, keys: int, values: int) -> Vocabulary:
    """Builds a vocabulary of the most frequent words of the documents, with ties in alphabetical order.

    Raises:
        UserError: The documents have fewer words.
    """
    counts = Counter(word for document in documents for word in document)
    if len(counts) < words:
        raise UserError(f"the text has {len(counts):,} different words, but the recipe needs {words:,}: use more text")
    chosen = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    return Vocabulary(words=tuple(chosen), keys=keys, values=values)


class Form(Settings):
    """A form of facts that does not occur in training: ``before... key between... value``.

    Attributes:
        before: Words before the key.
        between: Words between the key and its value.
        stated: Number of facts in a document, including the fact that the question asks for.
    """

    before: tuple[str, ...] = Field(default=(), strict=False)
    between: tuple[str, ...] = Field(default=(), strict=False)
    stated: Integer = Field(ge=1)


class Template(NamedTuple):
    """The ids before a fact's key, and those between key and value."""

    before: tuple[int, ...]
    between: tuple[int, ...]

    def write(self, vocabulary: Vocabulary, key: int, value: int) -> tuple[int, ...]:
        """Returns the tokens of a fact; keys and values are counted from 0."""
        _, key_id, value_id = vocabulary.fact(key, value)
        return *self.before, key_id, *self.between, value_id

    @property
    def size(self) -> int:
        """Number of tokens of a fact."""
        return len(self.before) + len(self.between) + 2


class Facts(Settings):
    """Facts of a document: ``mark key value``; no two facts of the document have the same key.

    Attributes:
        stated: Number of stated facts.
        repeated: Number of them that are stated again; the value of the second statement is an answer, which only the
            first statement determines.
        distance: Minimum number of tokens from a statement to its repetition.
    """

    stated: Integer
    repeated: Integer = Field(ge=0)
    distance: Integer = Field(ge=FACT)

    @model_validator(mode="after")
    def _check_repeated(self) -> Facts:
        if self.repeated > self.stated:
            raise UserError(f"repeated is {self.repeated} and stated {self.stated}: expected 0 <= repeated <= stated")
        return self

    def check(self, length: int) -> None:
        """Rejects documents that are too short for their facts."""
        if length < max(self.distance + FACT, 2 * (FACT + 1) * (self.stated + self.repeated)):
            raise UserError(
                f"documents of {length} tokens have no room for {self.stated} facts, {self.repeated} of them repeated "
                f"{self.distance} tokens behind: make documents longer, or facts fewer or nearer"
            )


class Deduplicated(NamedTuple):
    """Training documents without the spans that they share with held-out documents.

    Attributes:
        documents: The remaining spans.
        shared: Share of the spans of `SHARED` tokens of the held-out documents that occurred in training documents.
        removed: Share of the training tokens that were removed.
    """

    documents: list[Ids]
    shared: float
    removed: float


def deduplicate(train: Sequence[Ids], held_out: Sequence[Ids]) -> Deduplicated:
    """Removes every span of `SHARED` tokens that also occurs in a held-out document from the training documents.

    Remaining spans of fewer than `SHARED` tokens are removed too. Spans are compared by a hash of 64 bits: a collision
    removes a span that is not shared, but never keeps a shared one.
    """
    mine, kept, count = np.unique(np.concatenate([_runs(ids) for ids in held_out])), [], 0
    in_training = np.concatenate([_runs(ids) for ids in train])
    for ids in train:
        covered = np.zeros(len(ids) + 1, dtype=np.int64)
        for start in np.flatnonzero(np.isin(_runs(ids), mine)):
            covered[start : start + SHARED] = 1
        ends = np.flatnonzero(np.diff(covered[:-1], prepend=1, append=1))
        for start, stop in zip(ends[::2], ends[1::2], strict=True):
            if stop - start >= SHARED:
                kept.append(ids[start:stop])
                count += stop - start
    shared = float(np.isin(mine, in_training).mean()) if len(mine) else 0.0
    return Deduplicated(kept, shared, 1 - count / max(1, sum(map(len, train))))


def _runs(ids: Ids) -> npt.NDArray[np.uint64]:
    """Returns a hash of each span of `SHARED` tokens."""
    if len(ids) < SHARED:
        return np.zeros(0, dtype=np.uint64)
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(SHARED, dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64) + np.uint64(1), SHARED)
    hashes: npt.NDArray[np.uint64] = (windows * powers).sum(axis=1, dtype=np.uint64)
    return hashes


class FactAnswer(NamedTuple):
    """The value of a repeated fact: its position, and the distance in tokens to the text that determines it."""

    position: int
    distance: int


class FactDocument(NamedTuple):
    """Token ids ``(n,)`` and the answers in them."""

    token_ids: Ids
    answers: tuple[FactAnswer, ...]


class FactBatch(NamedTuple):
    """The documents of a training step.

    Attributes:
        token_ids: ``(B, n)``.
        answers: ``(B, n)`` bool: values of repeated facts.
    """

    token_ids: Ids
    answers: npt.NDArray[np.bool_]


class Prose:
    """A concatenation of documents in random order, from which random spans are sampled."""

    def __init__(self, documents: Sequence[Ids], rng: np.random.Generator) -> None:
        """``rng`` determines the order, and then the sampled positions."""
        self._ids = np.concatenate([documents[index] for index in rng.permutation(len(documents))])
        self._rng = rng

    def sample(self, length: int) -> Ids:
        """Returns ``length`` tokens from a random position.

        Raises:
            UserError: The documents have fewer tokens.
        """
        if len(self._ids) < length:
            raise UserError(
                f"one part of the text has {len(self._ids):,} words of the vocabulary, but a document needs "
                f"{length:,}: use more text"
            )
        start = self._rng.integers(0, len(self._ids) - length + 1)
        taken: Ids = self._ids[start : start + length].copy()
        return taken


def make_document(
    prose: Prose, vocabulary: Vocabulary, facts: Facts, length: int, rng: np.random.Generator
) -> FactDocument:
    """Creates a document of prose in which facts replace words at random positions, with at least one word in between.

    Args:
        prose: Source of the words.
        vocabulary: Vocabulary of the ids.
        facts: Number of facts, and their distance.
        length: n, tokens of the document.
        rng: Determines keys, values and positions.

    Raises:
        UserError: The facts do not fit into the document.
    """
    last = length - FACT

    def pair() -> tuple[int, ...]:
        apart = int(rng.integers(facts.distance, last + 1))
        first = int(rng.integers(0, last - apart + 1))
        return first, first + apart

    def single() -> tuple[int, ...]:
        return (int(rng.integers(0, last + 1)),)

    draws = [pair] * facts.repeated + [single] * (facts.stated - facts.repeated)
    return _with_facts(prose.sample(length), vocabulary, draws, rng)


def make_question(
    prose: Prose,
    vocabulary: Vocabulary,
    facts: Facts,
    length: int,
    depth: float,
    rng: np.random.Generator,
    template: Template | None = None,
) -> FactDocument:
    """Creates a document of prose with facts, which ends with a question for the fact at a depth, as in LongEval.

    Args:
        prose: Source of the words.
        vocabulary: Vocabulary of the ids.
        facts: Number of stated facts, including the fact that the question asks for.
        length: n, tokens of the document.
        depth: Position of this fact: 0 at the start of the document, 1 at `Facts.distance` before the question.
        rng: Determines keys, values and the other positions.
        template: Form of the facts; as in training by default.

    Raises:
        UserError: The facts do not fit into the document.
    """
    last = length - (FACT if template is None else template.size)
    asked = (round(depth * (last - facts.distance)), last)
    draws = [lambda: asked] + [lambda: (int(rng.integers(0, last)),)] * (facts.stated - 1)
    return _with_facts(prose.sample(length), vocabulary, draws, rng, template)


def make_drill(vocabulary: Vocabulary, length: int, rng: np.random.Generator) -> FactDocument:
    """Creates a document that consists only of facts, a few of them stated repeatedly; it has no counted answers.

    With prose that contains a few facts, a small model learns to retrieve much later.
    """
    count = int(rng.integers(min(DRILL_KEYS[0], vocabulary.keys), min(DRILL_KEYS[1], vocabulary.keys) + 1))
    keys = rng.choice(vocabulary.keys, count, replace=False)
    values = rng.integers(0, vocabulary.values, count)
    facts = np.array([vocabulary.fact(int(key), int(value)) for key, value in zip(keys, values, strict=True)])
    return FactDocument(facts[rng.integers(0, count, length // FACT + 1)].ravel()[:length], ())


def _with_facts(
    ids: Ids,
    vocabulary: Vocabulary,
    draws: Sequence[Callable[[], tuple[int, ...]]],
    rng: np.random.Generator,
    template: Template | None = None,
) -> FactDocument:
    """Writes a fact for each of ``draws``, which draw positions until these are free."""
    template = Template((vocabulary.mark,), ()) if template is None else template
    keys = rng.choice(vocabulary.keys, len(draws), replace=False)
    values = rng.integers(0, vocabulary.values, len(draws))
    taken = np.zeros(len(ids), dtype=bool)
    answers = []
    for key, value, draw in zip(keys, values, draws, strict=True):
        places = _free_places(taken, draw, template.size)
        for place in places:
            ids[place : place + template.size] = template.write(vocabulary, int(key), int(value))
            taken[place : place + template.size] = True
        answers += [FactAnswer(place + template.size - 1, place - places[0]) for place in places[1:]]
    return FactDocument(ids, tuple(sorted(answers)))


def _free_places(taken: npt.NDArray[np.bool_], draw: Callable[[], tuple[int, ...]], size: int) -> tuple[int, ...]:
    for _ in range(_TRIES):
        places = draw()
        if not any(taken[max(0, place - 1) : place + size + 1].any() for place in places):
            return places
    raise UserError(f"no room for a fact in {len(taken)} tokens: make documents longer, or facts fewer or nearer")
