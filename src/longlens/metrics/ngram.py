"""Tokens of n-grams that occurred before, the control of the paper's appendix B.7 for what LongPPL measures."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.alignment import as_spans, merge_spans, tokens_touching


def reoccurred_ngram_mask(text: str, char_spans: npt.ArrayLike, n: int = 3) -> npt.NDArray[np.bool_]:
    """Which tokens are part of a word-level n-gram that occurred earlier in the text (paper, appendix B.7).

    Words are maximal runs of non-blank characters, compared as they are. A word counts when one of the n-grams that
    it lies in began earlier in the text too; a token counts when it shares a character with such a word. The paper
    takes all N > 2: every re-occurred N-gram consists of re-occurred 3-grams, so n=3 is the union of them.

    Args:
        text: The scored text.
        char_spans: ``(n_tokens, 2)``, `[start, end)` in characters.
        n: Words in an n-gram.

    Returns:
        ``(n_tokens,)`` bool; time and memory grow with the number of words.

    Raises:
        UserError: n is below 1.
    """
    if n < 1:
        raise UserError(f"n is {n}, expected at least 1 word in an n-gram")
    matches = list(re.finditer(r"\S+", text))
    number: dict[str, int] = {}
    words = [number.setdefault(match.group(), len(number)) for match in matches]
    seen: set[tuple[int, ...]] = set()
    counts = np.zeros(len(words), dtype=np.bool_)
    for start in range(len(words) - n + 1):
        ngram = tuple(words[start : start + n])
        if ngram in seen:
            counts[start : start + n] = True
        seen.add(ngram)
    spans = as_spans([match.span() for match in matches])
    return tokens_touching(char_spans, merge_spans(spans[counts]))
