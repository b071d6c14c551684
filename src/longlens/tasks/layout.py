"""Pieces of text put together, and where the needles among them are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class Needle(NamedTuple):
    """A piece to hide, and where the answer stands in it, if it answers the question.

    Attributes:
        text: The piece.
        answer: ``[start, end)`` in characters of the text, or None.
    """

    text: str
    answer: tuple[int, int] | None = None


class Context(NamedTuple):
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


def needle(before: str, answer: str, after: str) -> Needle:
    """A needle ``before + answer + after``."""
    return Needle(before + answer + after, (len(before), len(before) + len(answer)))


def starts_of(pieces: Sequence[str], separator: str) -> list[int]:
    """First character of each piece in ``separator.join(pieces)``."""
    return list(accumulate((len(piece) + len(separator) for piece in pieces[:-1]), initial=0)) if pieces else []


def between(pieces: Sequence[str], needles: Sequence[Needle], places: Sequence[int], separator: str) -> Context:
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
    return Context(separator.join(mixed), tuple(starts[index] for index in at))


def boundary_at(boundaries: Sequence[int], place: int) -> int:
    """The last boundary at or before a place."""
    return boundaries[bisect_right(boundaries, place) - 1]
