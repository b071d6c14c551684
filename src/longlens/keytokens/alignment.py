"""Carrying key tokens and weights from one tokenizer to another through characters (paper, appendix A.1, eq. 9, 10).

Spans and runs are ``(k, 2)`` int64 arrays of ``[start, end)`` in Python characters. *Runs* are what `merge_spans`
returns: not empty, in text order, and at least one character apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


def as_spans(spans: npt.ArrayLike) -> Ints:
    """``(k, 2)`` int64, even for an empty list.

    Raises:
        ValueError: It is not a sequence of pairs.
    """
    return np.asarray(spans, dtype=np.int64).reshape(-1, 2)


def merge_spans(spans: npt.ArrayLike) -> Ints:
    """The runs of characters that the spans cover: spans that touch or overlap merge, empty ones are dropped.

    Args:
        spans: ``(k, 2)``, in any order.

    Returns:
        ``(m, 2)`` int64 runs.
    """
    spans = as_spans(spans)
    spans = spans[spans[:, 1] > spans[:, 0]]
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    covered = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > covered[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([spans[first, 0], covered[last]], axis=1)


def tokens_in_runs(char_spans: npt.ArrayLike, runs: Ints) -> Bools:
    """Which tokens lie inside one run: ``start < end and any(s <= start and end <= e for s, e in runs)`` (eq. 9).

    The paper defines the maximal set of tokens whose text is contained in the key text; since runs do not touch each
    other, a token's text is contained in it exactly if one run contains the whole token.

    Args:
        char_spans: ``(n, 2)``; overlapping tokens (a character split into bytes) are fine.
        runs: ``(m, 2)`` runs.

    Returns:
        ``(n,)`` bool.
    """
    spans = as_spans(char_spans)
    if not len(runs):
        return np.zeros(len(spans), dtype=np.bool_)
    run = np.searchsorted(runs[:, 0], spans[:, 0], side="right") - 1
    inside: Bools = (run >= 0) & (spans[:, 1] <= runs[run, 1]) & (spans[:, 1] > spans[:, 0])
    return inside


def tokens_touching(char_spans: npt.ArrayLike, runs: Ints) -> Bools:
    """Which tokens share a character with a run: ``any(max(s, start) < min(e, end) for s, e in runs)``.

    For the tokens of an answer (paper, section 2.1) and of n-grams, from which a token may differ by a leading blank.

    Args:
        char_spans: ``(n, 2)``.
        runs: ``(m, 2)`` runs.

    Returns:
        ``(n,)`` bool.
    """
    spans = as_spans(char_spans)
    if not len(runs):
        return np.zeros(len(spans), dtype=np.bool_)
    run = np.searchsorted(runs[:, 1], spans[:, 0], side="right")
    begins = np.append(runs[:, 0], np.iinfo(np.int64).max)[run]
    touching: Bools = (begins < spans[:, 1]) & (spans[:, 1] > spans[:, 0])
    return touching


def characters_of(spans: Ints) -> Ints:
    """The characters of every span, one span after the other: ``concatenate([arange(s, e) for s, e in spans])``."""
    lengths = spans[:, 1] - spans[:, 0]
    # first character of each span, plus 0, 1, ... within the span
    before = np.cumsum(lengths) - lengths
    characters: Ints = np.repeat(spans[:, 0] - before, lengths) + np.arange(lengths.sum())
    return characters


def carry_weights(source_spans: npt.ArrayLike, weights: npt.ArrayLike, target_spans: npt.ArrayLike) -> Doubles:
    """Weights of another tokenizer's tokens: the mean over a token's characters of the characters' weights (eq. 10).

    A character has the weight of the source token that it belongs to; the mean weight if it is split over several (byte
    tokens), which the paper leaves open; 0 if it belongs to none. An empty target token has weight 0. Equal tokenizers
    thus give equal weights except for characters that are split into several tokens.

    Args:
        source_spans: ``(n, 2)``.
        weights: ``(n,)`` finite.
        target_spans: ``(n', 2)``.

    Returns:
        ``(n',)`` float64.
    """
    source, target = as_spans(source_spans), as_spans(target_spans)
    filled = source[:, 1] > source[:, 0]
    weight = np.asarray(weights, dtype=np.float64)[filled]
    lengths = (source[:, 1] - source[:, 0])[filled]
    characters = characters_of(source[filled])
    length = int(max(source[:, 1].max(initial=0), target[:, 1].max(initial=0))) + 1
    total = np.bincount(characters, weights=np.repeat(weight, lengths), minlength=length)
    number = np.bincount(characters, minlength=length)
    of_character = total / np.maximum(number, 1)

    carried = np.zeros(len(target), dtype=np.float64)
    filled = target[:, 1] > target[:, 0]
    if filled.any():  # even entries are sums over [start, end); odd ones are sums between two tokens
        sums = np.add.reduceat(of_character, target[filled].ravel())[::2]
        carried[filled] = sums / (target[:, 1] - target[:, 0])[filled]
    return carried
