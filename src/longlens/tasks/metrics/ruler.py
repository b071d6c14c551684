"""Computes RULER's scores: how many of the expected strings a prediction contains."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from longlens.errors import UserError

Found = Callable[[str, str], bool]


def _anywhere(reference: str, prediction: str) -> bool:
    return reference.lower() in prediction.lower()


def _as_words(reference: str, prediction: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(reference.lower())}(?!\w)", prediction.lower()) is not None


def _percent(found: Found, predictions: Sequence[str], references: Sequence[Sequence[str]], best: bool) -> float:
    if isinstance(predictions, str) or len(predictions) != len(references) or not predictions:
        given = "one string" if isinstance(predictions, str) else f"{len(predictions)} predictions"
        raise UserError(f"got {given} and {len(references)} lists of references: expected equal numbers, at least one")
    total = 0.0
    for index, (prediction, wanted) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(wanted, str) or not wanted:
            raise UserError(f"references[{index}] is {wanted!r}, expected a list of at least one string")
        hits = [float(found(reference, prediction)) for reference in wanted]
        total += max(hits) if best else sum(hits) / len(hits)
    return round(total / len(predictions) * 100, 2)


def string_match_all(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean fraction of its references that a prediction contains, 0 to 100, rounded to 2 digits.

    ``100 * mean(mean(r.lower() in p.lower() for r in refs) for p, refs in zip(predictions, references))``

    For niah, variable tracking, common and frequent words. Oddities: word boundaries are ignored, so the reference
    ``2345`` is found in ``123456`` (`string_match_all_words` matches whole words); the empty string is found anywhere.

    Source: RULER ``scripts/eval/synthetic/constants.py``. ``evaluate.py`` there first strips the prediction, replaces
    each of the characters U+0000 to U+001F with a line break, and strips again.

    Args:
        predictions: One string per sample.
        references: One list of strings per sample.

    Raises:
        UserError: The lists are empty or differ in length (RULER's code drops the surplus), or a sample has no
            references.
    """
    return _percent(_anywhere, predictions, references, best=False)


def string_match_part(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Percentage of predictions that contain any of their references, 0 to 100, rounded to 2 digits.

    ``100 * mean(max(r.lower() in p.lower() for r in refs) for p, refs in zip(predictions, references))``

    For question answering. Oddities, source and arguments are those of `string_match_all`.

    Raises:
        UserError: The lists are empty or differ in length, or a sample has no references.
    """
    return _percent(_anywhere, predictions, references, best=True)


def string_match_all_words(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    r"""`string_match_all`, but a reference matches only if no letter, digit or ``_`` (``\w``) is adjacent to it.

    Raises:
        UserError: The lists are empty or differ in length, or a sample has no references.
    """
    return _percent(_as_words, predictions, references, best=False)


def string_match_part_words(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    r"""`string_match_part`, but a reference matches only if no letter, digit or ``_`` (``\w``) is adjacent to it.

    Raises:
        UserError: The lists are empty or differ in length, or a sample has no references.
    """
    return _percent(_as_words, predictions, references, best=True)
