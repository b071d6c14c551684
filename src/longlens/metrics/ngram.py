"""Tokens of n-grams that occurred before, the control of the paper's appendix B.7 for LongPPL."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.alignment import as_spans, merge_spans, tokens_touching


def reoccurred_ngram_mask(text: str, char_spans: npt.ArrayLike, n: int = 3) -> npt.NDArray[np.bool_]:
    """Which tokens are part of a word-level n-gram that occurred earlier in the text (paper, appendix B.7).

    Words are maximal runs of non-blank characters, compared exactly. A word counts when one of the n-grams that
    it lies in began earlier in the text too; a token counts when it shares a character with such a word. The paper uses
    all N > 2: every re-occurred N-gram consists of re-occurred 3-grams, so n=3 is the union of them.

    Args:
        text: The scored text.
        char_spans: ``(n_tokens, 2)``, `[start, end)` in characters.
        n: Number of words in an n-gram.

    Returns:
        ``(n_tokens,)`` bool; time and memory are linear in the number of words.

    Raises:
        UserError: n is below 1.
    """
    if n < 1:
        raise UserError(f"`n` is {n}, expected at least 1 word in an n-gram")
    # str.isspace() is also what \S and str.split() use
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    blank = np.isin(characters, [ord(character) for character in set(text) if character.isspace()])
    edges = np.flatnonzero(np.diff(blank, prepend=True, append=True))
    spans = edges.reshape(-1, 2)  # a word begins where blanks end
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for word in text.split()], dtype=np.int64)
    if len(words) < n:
        return np.zeros(len(as_spans(char_spans)), dtype=np.bool_)
    ngrams = words[: len(words) - n + 1]
    for place in range(1, n):  # equal numbers for equal n-grams, which keeps products far below 2^63
        following = words[place : len(words) - n + 1 + place]
        ngrams = np.unique(ngrams * len(numbers) + following, return_inverse=True)[1]
    _, first, inverse = np.unique(ngrams, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] < np.arange(len(ngrams)))
    counts = np.zeros(len(words) + 1, dtype=np.int64)
    np.add.at(counts, again, 1)
    np.add.at(counts, again + n, -1)
    return tokens_touching(char_spans, merge_spans(spans[np.cumsum(counts)[:-1] > 0]))
