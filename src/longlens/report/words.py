"""Words of a text: which kind each is, and where it was mentioned before."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.keytokens.alignment import as_spans

Ints = npt.NDArray[np.int64]
KINDS = ("identifiers", "names", "numbers", "other words", "no word")
"""In words: `_kind` says which word is of which; tokens of punctuation and blanks alone are part of no word."""

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d[\d_]*|0[xX][0-9a-fA-F]+")
_SENTENCE_ENDS = frozenset(".!?:\n")


class Words(NamedTuple):
    """The words of a text, maximal runs of letters, digits and underscores.

    Attributes:
        spans: ``(w, 2)``, ``[start, end)`` in characters.
        earlier: ``(w,)``, the last word before that is the same, capitals included; -1 if there is none.
        kinds: ``(w,)``, places in `KINDS`.
    """

    spans: Ints
    earlier: Ints
    kinds: Ints


def words_of(text: str) -> Words:
    """The words of a text, in order."""
    last: dict[str, int] = {}
    spans, earlier, kinds = [], [], []
    for number, match in enumerate(_WORD.finditer(text)):
        word = match.group()
        spans.append(match.span())
        earlier.append(last.get(word, -1))
        kinds.append(KINDS.index(_kind(word, text, match.start())))
        last[word] = number
    return Words(as_spans(spans), np.array(earlier, dtype=np.int64), np.array(kinds, dtype=np.int64))


def _kind(word: str, text: str, start: int) -> str:
    """Which of `KINDS` a word is.

    A number is of digits; an identifier has an underscore, letters and digits, or a capital after a small letter; a
    name begins with a capital, and neither its sentence nor its line does with it.
    """
    if _NUMBER.fullmatch(word):
        return "numbers"
    has_digit, has_letter = any(map(str.isdigit, word)), any(map(str.isalpha, word))
    if "_" in word or (has_digit and has_letter):
        return "identifiers"
    if any(one.islower() and other.isupper() for one, other in pairwise(word)):
        return "identifiers"
    if word[0].isupper() and not _begins_sentence(text, start):
        return "names"
    return "other words"


def _begins_sentence(text: str, start: int) -> bool:
    """Whether the last character before that is no blank ends a sentence, or a line ends between."""
    at = start - 1
    while at >= 0 and text[at] in " \t\"'([":
        at -= 1
    return at < 0 or text[at] in _SENTENCE_ENDS


def words_of_tokens(char_spans: npt.ArrayLike, words: Words) -> Ints:
    """``(n,)``: the first word that each token shares a character with; -1 if there is none."""
    spans = as_spans(char_spans)
    if not len(words.spans):
        return np.full(len(spans), -1, dtype=np.int64)
    found = np.searchsorted(words.spans[:, 1], spans[:, 0], side="right")
    begins = np.append(words.spans[:, 0], np.iinfo(np.int64).max)[found]
    shares = (begins < spans[:, 1]) & (spans[:, 1] > spans[:, 0])
    return np.where(shares, found, -1)


def mentions(words: Words, word: int, most: int) -> list[int]:
    """The words before this one that are the same, the nearest first, ``most`` at most."""
    found: list[int] = []
    at = int(words.earlier[word])
    while at >= 0 and len(found) < most:
        found.append(at)
        at = int(words.earlier[at])
    return found


def tokens_since(char_spans: npt.ArrayLike, of_token: Ints, words: Words) -> Ints:
    """``(n,)``: how many tokens before each its word was mentioned last; -1 where it is in no word, 0 for a new one.

    The distance of token i is ``i - j``, j being the first token that the earlier mention shares a character with.
    """
    spans = as_spans(char_spans)
    earlier = np.where(of_token >= 0, words.earlier[of_token] if len(words.earlier) else -1, -1)
    starts = words.spans[:, 0][earlier] if len(words.spans) else np.zeros(len(spans), dtype=np.int64)
    since = np.arange(len(spans)) - np.searchsorted(spans[:, 1], starts, side="right")
    return np.where(of_token < 0, -1, np.where(earlier < 0, 0, since))
