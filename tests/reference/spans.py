"""Character spans of tokens, the slow and obvious way."""

from __future__ import annotations

from collections.abc import Sequence


def spans_of_pieces(text: str, pieces: Sequence[bytes]) -> list[list[int]]:
    """[start, end) of each piece, where the pieces joined are the text in UTF-8."""
    owner = [place for place, character in enumerate(text) for _ in character.encode()]
    spans = []
    at = 0
    for piece in pieces:
        mine = owner[at : at + len(piece)]
        spans.append([mine[0], mine[-1] + 1])
        at += len(piece)
    assert at == len(owner)
    return spans


def uncovered(text: str, spans: Sequence[Sequence[int]]) -> list[int]:
    """Characters in no span."""
    inside = {place for start, end in spans for place in range(start, end)}
    return [place for place in range(len(text)) if place not in inside]
