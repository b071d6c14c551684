"""Prose that every machine has, in words: the docstrings of Python's standard library and `pydoc`'s topics."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from longlens.corpus import read_documents
from longlens.errors import UserError, shown

Ids = npt.NDArray[np.int64]
SPLITS = ("test", "development", "train")
# Some installations leave these out, so that the text would differ from machine to machine.
LEFT_OUT = frozenset(
    ("dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "tkinter", "turtledemo")
)
_WORD = re.compile(r"[a-z]+")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Documents in words: runs of the letters a to z, after lower-casing; everything else only separates them.

    Attributes:
        name: What it is, without the place it was read from.
        documents: Words by the document's name, sorted by name.
    """

    name: str
    documents: dict[str, tuple[str, ...]]

    @property
    def sha256(self) -> str:
        """Hash of all words in order, a line a document."""
        lines = "\n".join(" ".join(words) for words in self.documents.values())
        return hashlib.sha256(lines.encode()).hexdigest()

    def split(self, share: float) -> dict[str, list[tuple[str, ...]]]:
        """Documents for testing, for development and for training; no document is in two of them.

        In the order of the hashes of their names, documents are taken for testing until these have ``share`` of all
        words, then likewise for development; the rest is for training.

        Args:
            share: Of the words, for testing and for development each.

        Returns:
            Documents by the names in `SPLITS`.
        """
        wanted = share * sum(len(words) for words in self.documents.values())
        parts: dict[str, list[tuple[str, ...]]] = {name: [] for name in SPLITS}
        left, taken = list(SPLITS), 0
        for name in sorted(self.documents, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
            if len(left) > 1 and taken >= wanted:
                left.pop(0)
                taken = 0
            parts[left[0]].append(self.documents[name])
            taken += len(self.documents[name])
        return parts


def read_text(source: str | os.PathLike[str] | None) -> Text:
    """The text of a study.

    Args:
        source: A file or a folder as `read_documents` takes it; the standard library of the running Python unless
            given.

    Raises:
        UserError: It cannot be read, or holds no words.
    """
    if source is None:
        return _made(f"standard library of Python {_version()}", _standard_library())
    documents = {document.id: document.text for document in read_documents([source])}
    return _made(Path(source).name or str(source), documents)


def _version() -> str:
    return ".".join(sysconfig.get_python_version().split(".")[:2])


def _made(name: str, documents: dict[str, str]) -> Text:
    words = {key: tuple(_WORD.findall(text.lower())) for key, text in sorted(documents.items())}
    found = {key: value for key, value in words.items() if value}
    if not found:
        raise UserError(f"{shown(name)} holds no words of the letters a to z: give another --text")
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
        raise UserError("this Python has no source files of its standard library: give prose with --text")
    return documents


def _docstrings(source: bytes) -> Iterable[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    nodes = (node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
    return (text for node in nodes if (text := ast.get_docstring(node)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Words, then the mark that begins a fact, then keys, then the values of each key: ids 0 to size - 1.

    A key has values of its own, as a colour or a city has, so that one layer of attention can find the value of a key;
    values that all keys share would need a circuit of two layers, which takes many times the training.

    Attributes:
        words: The words that have an id; others are left out of the text.
        keys: How many keys there are.
        values: How many values each key has.
    """

    words: tuple[str, ...]
    keys: int
    values: int

    @property
    def mark(self) -> int:
        """Id of the mark; what is below it is a word."""
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
        """How many ids there are."""
        return self.first_value + self.keys * self.values

    def fact(self, key: int, value: int) -> tuple[int, int, int]:
        """The tokens of a fact: the mark, the key, the value; keys and values are counted from 0."""
        return self.mark, self.first_key + key, self.first_value + key * self.values + value

    def encode(self, documents: Iterable[Sequence[str]]) -> list[Ids]:
        """Ids of the words of each document that are in the vocabulary."""
        ids = {word: index for index, word in enumerate(self.words)}
        return [np.array([ids[word] for word in words if word in ids], dtype=np.int64) for words in documents]


def make_vocabulary(documents: Iterable[Sequence[str]], *, words: int, keys: int, values: int) -> Vocabulary:
    """The most frequent words of some documents, of equal ones the first in the alphabet.

    Raises:
        UserError: The documents have fewer words.
    """
    counts = Counter(word for document in documents for word in document)
    if len(counts) < words:
        raise UserError(f"the text has {len(counts):,} different words, and the recipe wants {words:,}: give more text")
    chosen = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    return Vocabulary(words=tuple(chosen), keys=keys, values=values)
