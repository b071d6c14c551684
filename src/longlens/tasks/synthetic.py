"""Building blocks of tasks with synthetic texts: random words, needles and their positions, wrong answers.

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
"""Wrong answers of a choice among 10, for which chance is 10 % at each length."""


@lru_cache
def word_list(kind: str) -> tuple[str, ...]:
    """All words of a kind in alphabetical order: 910 of ``adjective``, 6,782 of ``noun``, 1,041 of ``verb``.

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
    """Endless draws without repetition and without the values in ``taken``."""
    seen = set() if taken is None else set(taken)
    while True:
        if (value := draw(rng)) not in seen:
            seen.add(value)
            yield value


def longest_word(*kinds: str) -> int:
    """Bytes of the longest words of some kinds, joined with hyphens."""
    return sum(max(len(word.encode()) for word in word_list(kind)) + 1 for kind in kinds) - 1


def distractors(
    inside: Sequence[str], answers: Sequence[str], rng: Random, outside: Iterable[str] = ()
) -> dict[str, Any]:
    """`NUM_DISTRACTORS` different values, none of which is an answer, as metadata of a sample.

    Values in the text come first, as a random choice if there are too many: a model that only copies text that looks
    like an answer cannot distinguish them from it. If there are too few, other values of the same form follow, so
    that chance is the same at each length.

    Args:
        inside: Values that occur in the text; they may include answers.
        answers: The right answers.
        rng: Random number generator of the sample, used only for this purpose.
        outside: Different values of the same form, enough or endless; values in the text are skipped.

    Returns:
        ``distractors``: the values, fewer if there are not enough; ``distractors_in_text``: the number of them that
        occur in the text.
    """
    others = [value for value in dict.fromkeys(inside) if value not in answers]
    wrong = rng.sample(others, min(NUM_DISTRACTORS, len(others)))
    taken = {*others, *answers}
    more = islice((value for value in outside if value not in taken), NUM_DISTRACTORS - len(wrong))
    return {"distractors": [*wrong, *more], "distractors_in_text": len(wrong)}


class Needle(NamedTuple):
    """A piece to hide, and the position of the answer in it, if it contains the answer.

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
        starts: First character of each needle, in the order of the needles passed.
    """

    text: str
    starts: tuple[int, ...]

    def depths(self, needles: Sequence[Needle]) -> list[float]:
        """Positions of needles, in percent of the text without the needle: 0 is its beginning, 100 its end."""
        rest = [max(1, len(self.text) - len(needle.text)) for needle in needles]
        return [round(100 * start / length, 2) for start, length in zip(self.starts, rest, strict=True)]

    def answers(self, needles: Sequence[Needle], offset: int) -> list[tuple[int, int]]:
        """Sorted spans of the answers, in characters of a prompt that contains this text at ``offset``."""
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
    """Inserts needle i before piece ``places[i]`` (after the last piece at ``len(pieces)``), and joins all pieces.

    Args:
        pieces: The haystack.
        needles: The needles to hide.
        places: One per needle, not decreasing.
        separator: String between pieces.
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
    """The last boundary at or before a position."""
    return boundaries[bisect_right(boundaries, place) - 1]
