"""Lists of single tokens: the largest of many, with the text around them."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

AROUND = 32
"""Number of characters shown before and after a listed token."""

T = TypeVar("T")


class Most(Generic[T]):
    """The entries with the largest values, at most ``most``; of equal ones, the first.

    Args:
        most: Maximum number of entries.
    """

    def __init__(self, most: int) -> None:
        self._most, self._number = most, 0
        self._heap: list[tuple[float, int, T]] = []

    def takes(self, value: float) -> bool:
        """Whether an entry of this value would be kept."""
        return len(self._heap) < self._most or value > self._heap[0][0]

    def add(self, value: float, entry: T) -> None:
        """Adds an entry if `takes` is true for its value."""
        self._number += 1
        ranked = (value, -self._number, entry)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, ranked)
        else:
            heapq.heapreplace(self._heap, ranked)

    def sorted(self) -> list[T]:
        """The entries, largest first."""
        return [entry for _, _, entry in sorted(self._heap, key=lambda kept: (-kept[0], -kept[1]))]


def excerpt(text: str | None, start: int, end: int) -> dict[str, str]:
    """``before``, ``text`` and ``after`` of characters ``[start, end)``; empty if the text was not stored."""
    if text is None:
        return {"before": "", "text": "", "after": ""}
    return {"before": text[max(0, start - AROUND) : start], "text": text[start:end], "after": text[end : end + AROUND]}
