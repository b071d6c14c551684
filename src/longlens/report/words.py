"""Finds the words of a text, their kinds, and their earlier mentions."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.keytokens.alignment import as_spans

Ints = npt.NDArray[np.int64]
KINDS = ("identifiers", "names", "numbers", "other words", "no word")
"""Kinds of words, see `_kind`; tokens of only punctuation and blanks are not part of a word."""

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d[\d_]*|0[xX][0-9a-fA-F]+")
_SENTENCE_ENDS = frozenset(".!?:\n")


class Words(NamedTuple):
    """The words of a text, maximal runs of letters, digits and underscores.

    Attributes:
        spans: ``(w, 2)``, ``[start, end)`` in characters.
        earlier: ``(w,)``, index of the previous occurrence of the same word, case-sensitive; -1 if there is none.
        kinds: ``(w,)``, indices into `KINDS`.
    """

    spans: Ints
    earlier: Ints
    kinds: Ints


def words_of(text: str) -> Words:
    """Returns the words of a text, in order."""
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
    """Returns the kind of a word, one of `KINDS`.

    A number consists of digits; an identifier has an underscore, letters and digits, or a capital after a lowercase
    letter; a name starts with a capital but is not the first word of its sentence or line.
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
    """Returns whether the preceding non-blank character ends a sentence, or a line break is before the word."""
    at = start - 1
    while at >= 0 and text[at] in " \t\"'([":
        at -= 1
    return at < 0 or text[at] in _SENTENCE_ENDS


def words_of_tokens(char_spans: npt.ArrayLike, words: Words) -> Ints:
    """``(n,)``: index of the first word that each token overlaps; -1 if there is none."""
    spans = as_spans(char_spans)
    if not len(words.spans):
        return np.full(len(spans), -1, dtype=np.int64)
    found = np.searchsorted(words.spans[:, 1], spans[:, 0], side="right")
    begins = np.append(words.spans[:, 0], np.iinfo(np.int64).max)[found]
    shares = (begins < spans[:, 1]) & (spans[:, 1] > spans[:, 0])
    return np.where(shares, found, -1)


def mentions(words: Words, word: int, most: int) -> list[int]:
    """Returns the earlier occurrences of the same word, nearest first, at most ``most``."""
    found: list[int] = []
    at = int(words.earlier[word])
    while at >= 0 and len(found) < most:
        found.append(at)
        at = int(words.earlier[at])
    return found


def tokens_since(char_spans: npt.ArrayLike, of_token: Ints, words: Words) -> Ints:
    """``(n,)``: number of tokens since the previous mention of each token's word; -1 if not in a word, 0 if new.

    The distance of token i is ``i - j``, where j is the first token that overlaps the earlier mention.
    """
    spans = as_spans(char_spans)
    earlier = np.where(of_token >= 0, words.earlier[of_token] if len(words.earlier) else -1, -1)
    starts = words.spans[:, 0][earlier] if len(words.spans) else np.zeros(len(spans), dtype=np.int64)
    since = np.arange(len(spans)) - np.searchsorted(spans[:, 1], starts, side="right")
    return np.where(of_token < 0, -1, np.where(earlier < 0, 0, since))
