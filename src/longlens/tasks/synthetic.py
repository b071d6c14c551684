"""What tasks with made-up texts are put together from: random words, needles and their places, wrong answers.

Words are those of the package `wonderwords`, as in RULER and LongEval.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from random import Random
from typing import Any, NamedTuple

from longlens.errors import require

NUM_DISTRACTORS = 9
"""With the answer a choice among 10: chance is 10 % at each length."""


@lru_cache
def word_list(kind: str) -> tuple[str, ...]:
    """All words of a kind in the order of the alphabet: 910 of ``adjective``, 6,782 of ``noun``, 1,041 of ``verb``.

    Raises:
        UserError: The package is not installed.
    """
    wonderwords = require("wonderwords", extra="tasks", purpose="a task whose keys are words")
    return tuple(sorted(set(wonderwords.RandomWord().filter(include_categories=[kind]))))


def draw_words(rng: Random) -> str:
    """An adjective and a noun, such as ``torpid-kid``: one of 6.17 million."""
    return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"


def draw_number(rng: Random) -> str:
    """A number of seven digits."""
    return str(rng.randint(10**6, 10**7 - 1))


def draw_uuid(rng: Random) -> str:
    """A UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def distinct(draw: Callable[[Random], str], rng: Random, taken: set[str] | None = None) -> Iterator[str]:
    """Endless draws, none of them twice and none of them ``taken``."""
    seen = set() if taken is None else set(taken)
    while True:
        if (value := draw(rng)) not in seen:
            seen.add(value)
            yield value


def longest_word(*kinds: str) -> int:
    """Bytes of the longest word of some kinds, put together with hyphens."""
    return sum(max(len(word.encode()) for word in word_list(kind)) + 1 for kind in kinds) - 1


def distractors(
    inside: Sequence[str], answers: Sequence[str], rng: Random, outside: Iterable[str] = ()
) -> dict[str, Any]:
    """`NUM_DISTRACTORS` different values, none of them an answer, as metadata of a sample.

    Those that are in the text come first, a random choice of them where there are more: a model that only copies
    what looks like an answer cannot distinguish them. Where there are too few, others of the same form follow, so
    that chance is the same at each length.

    Args:
        inside: Values that are in the text; answers may be among them.
        answers: The right ones.
        rng: Random number generator of the sample, for this purpose alone.
        outside: Different values of the same form, as many as needed or without end; those in the text are passed over.

    Returns:
        ``distractors``: the values, fewer where there are no more; ``distractors_in_text``: how many of them stand in
        the text.
    """
    others = [value for value in dict.fromkeys(inside) if value not in answers]
    wrong = rng.sample(others, min(NUM_DISTRACTORS, len(others)))
    taken = {*others, *answers}
    more = islice((value for value in outside if value not in taken), NUM_DISTRACTORS - len(wrong))
    return {"distractors": [*wrong, *more], "distractors_in_text": len(wrong)}


class Needle(NamedTuple):
    """A piece to hide, and where the answer is in it, if it answers the question.

    Attributes:
        text: The piece.
        answer: ``[start, end)`` in characters of the text, or None.
    """

    text: str
    answer: tuple[int, int] | None = None


class NeedleText(NamedTuple):
    """A text with needles.

    Attributes:
        text: The text.
        starts: First character of each needle, in the order in which they were given.
    """

    text: str
    starts: tuple[int, ...]

    def depths(self, needles: Sequence[Needle]) -> list[float]:
        """Where needles are, in percent of the text that is not this needle: 0 is its begin, 100 its end."""
        rest = [max(1, len(self.text) - len(needle.text)) for needle in needles]
        return [round(100 * start / length, 2) for start, length in zip(self.starts, rest, strict=True)]

    def answers(self, needles: Sequence[Needle], offset: int) -> list[tuple[int, int]]:
        """Where answers are, in characters of a prompt that has this text at ``offset``; in order."""
        return sorted(
            (offset + start + needle.answer[0], offset + start + needle.answer[1])
            for start, needle in zip(self.starts, needles, strict=True)
            if needle.answer is not None
        )


def make_needle(before: str, answer: str, after: str) -> Needle:
    """The needle ``before + answer + after``."""
    return Needle(before + answer + after, (len(before), len(before) + len(answer)))


def starts_of(pieces: Sequence[str], separator: str) -> list[int]:
    """First character of each piece in ``separator.join(pieces)``."""
    return list(accumulate((len(piece) + len(separator) for piece in pieces[:-1]), initial=0)) if pieces else []


def hide_needles(pieces: Sequence[str], needles: Sequence[Needle], places: Sequence[int], separator: str) -> NeedleText:
    """Puts needle i before piece ``places[i]`` (after the last one at ``len(pieces)``), and joins all.

    Args:
        pieces: The haystack.
        needles: What to hide.
        places: One a needle, not decreasing.
        separator: Between pieces.
    """
    mixed: list[str] = []
    at = []
    done = 0
    for hidden, place in zip(needles, places, strict=True):
        mixed += pieces[done:place]
        at.append(len(mixed))
        mixed.append(hidden.text)
        done = place
    mixed += pieces[done:]
    starts = starts_of(mixed, separator)
    return NeedleText(separator.join(mixed), tuple(starts[index] for index in at))


def boundary_at(boundaries: Sequence[int], place: int) -> int:
    """The last boundary at or before a place."""
    return boundaries[bisect_right(boundaries, place) - 1]
