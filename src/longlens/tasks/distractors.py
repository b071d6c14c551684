"""Wrong answers of the right kind, to score a task by a choice among them instead of by what a model writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from random import Random

from longlens.tasks.words import distinct

MOST = 15
"""With the answer a choice among 16."""


def distractors(
    inside: Sequence[str], answers: Sequence[str], rng: Random, draw: Callable[[Random], str] | None = None
) -> list[str]:
    """Up to `MOST` different values, none of them an answer.

    Those that stand in the text, a random choice of them where there are more: who only copies what looks like an
    answer cannot tell them apart. Where there are none, as many drawn ones.

    Args:
        inside: Values that stand in the text; answers may be among them.
        answers: The right ones.
        rng: Of the sample, for this purpose alone.
        draw: Draws a value of the same kind; without it there are only those in the text.
    """
    others = [value for value in dict.fromkeys(inside) if value not in answers]
    if others or draw is None:
        return rng.sample(others, min(MOST, len(others)))
    return list(islice(distinct(draw, rng, set(answers)), MOST))
