"""The texts that needles are hidden in: prose that every Python has, or a file of the user."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from longlens.corpus import read_documents
from longlens.errors import UserError

_END = re.compile(r"[.!?…]+[\"'”’)\]]*$")
_SHORT = r"[A-Za-z]|[Ee]\.g|[Ii]\.e|a\.k\.a|[Cc]f|vs|etc|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Fig|U\.S"
_ABBREVIATION = re.compile(rf"^[\"'“‘(\[]*(?:{_SHORT})\.$")
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Haystack:
    """A text in words; longer ones are made by repeating it, as RULER does with its essays.

    Attributes:
        name: What it is, without the place it was read from.
        sha256: Of its words with one space between them.
        words: Its words, as in RULER: what white space separates.
        ends: How many words there are up to the end of each sentence, see `sentence_ends`.
    """

    name: str
    sha256: str
    words: tuple[str, ...]
    ends: tuple[int, ...]

    def take(self, count: int) -> list[str]:
        """The first words, of the text after itself as often as that needs."""
        whole, rest = divmod(count, len(self.words))
        return list(self.words) * whole + list(self.words[:rest])

    def sentences(self, count: int) -> list[int]:
        """Where sentences of ``take(count)`` begin, and ``count``: 0 = b[0] < b[1] < … < b[-1] = count."""
        length = len(self.words)
        whole, rest = divmod(count, length)
        repeated = [turn * length + end for turn in range(whole) for end in self.ends]
        tail = [whole * length + end for end in self.ends[: bisect_left(self.ends, rest)]]
        return [0, *(place for place in repeated + tail if place < count), count]

    def described(self) -> dict[str, str]:
        """Name and hash, for a sample's metadata."""
        return {"name": self.name, "sha256": self.sha256}


def open_haystack(source: str | os.PathLike[str] | None = None) -> Haystack:
    """A haystack.

    Args:
        source: A file or a folder as `longlens.corpus.read_documents` takes it, its documents one after the other; the
            topics of `pydoc` of the running Python unless given.

    Raises:
        UserError: It cannot be read, or has fewer than two sentences.
    """
    if source is None:
        return _pydoc_topics()
    text = "\n".join(document.text for document in read_documents([source]))
    return made(Path(source).name or str(source), text)


def made(name: str, text: str) -> Haystack:
    """A haystack of a text.

    Raises:
        UserError: It has fewer than two sentences.
    """
    words = tuple(text.split())
    ends = sentence_ends(words)
    if len(ends) < 2:
        raise UserError(f"haystack {name!r} has {len(ends)} sentences; expected a text of at least 2, better thousands")
    digest = hashlib.sha256(" ".join(words).encode()).hexdigest()
    return Haystack(name=name, sha256=digest, words=words, ends=ends)


def sentence_ends(words: tuple[str, ...]) -> tuple[int, ...]:
    """How many words there are up to the end of each sentence; the text's own end is one.

    A sentence ends after a word that ends in ``.``, ``!`` or ``?`` (and perhaps closing quotes and brackets) where the
    next word does not begin with a small letter, unless the word is an initial or one of a few abbreviations. RULER
    splits by a model that nltk downloads; this rule needs no file, and a needle is as well hidden at its sentence ends.
    """
    ends = [
        index + 1
        for index in range(len(words) - 1)
        if _END.search(words[index]) and not words[index + 1][0].islower() and not _ABBREVIATION.match(words[index])
    ]
    return (*ends, len(words)) if words else ()


@lru_cache(maxsize=1)
def _pydoc_topics() -> Haystack:
    """The prose of ``pydoc_data.topics`` (PSF licence): paragraphs that are neither code nor headings, each once."""
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys(
        " ".join(paragraph.split())
        for key in sorted(topics)
        for paragraph in _PARAGRAPH.split(topics[key])
        if paragraph[:1].isupper() and len(paragraph.split()) >= 8 and paragraph.rstrip()[-1] in ".:"
    )
    return made(f"pydoc topics of Python {platform.python_version()}", "\n".join(paragraphs))
