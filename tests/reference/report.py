"""Naive oracles of the page, a token and a character at a time, in Python's own units."""

from __future__ import annotations

import math
from collections.abc import Sequence

from longlens.scoring.scores import TokenScores

LSD_EDGES = (-2, -0.5, 0.5, 2, 4, 8)
LCL_EDGES = (-8, -4, -2, -1, -0.5)
_RANGES = [
    (0x00, 0x08),
    (0x0B, 0x1F),
    (0x7F, 0x9F),
    (0xAD, 0xAD),
    (0x61C, 0x61C),
    (0x200B, 0x200B),
    (0x200E, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x206F),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
]


def utf16_offsets(text: str) -> list[int]:
    return [len(text[:i].encode("utf-16-le")) // 2 for i in range(len(text) + 1)]


def visible(text: str) -> str:
    """The text as the page shows it: what is not seen, or turns other text around, is a sign of one unit."""

    def shown(character: str) -> str:
        code = ord(character)
        if not any(low <= code <= high for low, high in _RANGES):
            return character
        return chr(0x2400 + code) if code < 32 else "\u25cc"

    return "".join(map(shown, text))


def color_class(value: float | None, prefix: str, edges: Sequence[float]) -> str:
    """``c0`` below the first edge, …; ``none`` where there is no value."""
    if value is None or math.isnan(value):
        return "none"
    return f"{prefix}{sum(value >= edge for edge in edges)}"


def carried_lsd(evaluated: TokenScores, row: TokenScores) -> list[float]:
    """The evaluator's LSD on other tokens: the mean over characters of the mean over the tokens that have one (eq. 10).

    NaN where no character has one.
    """
    of_character: dict[int, list[float]] = {}
    for (start, end), value in zip(evaluated.char_spans.tolist(), evaluated.lsd.tolist(), strict=True):
        for character in range(start, end):
            if not math.isnan(value):
                of_character.setdefault(character, []).append(value)
    found = []
    for start, end in row.char_spans.tolist():
        own = [of_character[c] for c in range(start, end) if c in of_character]
        found.append(sum(sum(values) / len(values) for values in own) / len(own) if own else math.nan)
    return found


def shown_pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """What stands in the element of each token: what no token before it showed."""
    cursor, found = 0, []
    for start, end in spans:
        found.append(text[max(cursor, start) : end])
        cursor = max(cursor, end)
    return found
