"""Numbers in a text that a model wrote: they may be of any length."""

from __future__ import annotations

MAX_DIGITS = 4300
"""Digits that Python turns into an integer unless told otherwise (``sys.int_info.default_max_str_digits``)."""


def integer(digits: str) -> int | None:
    """``int(digits)``, or None for more digits than Python converts; no benchmark has such a number."""
    return int(digits) if len(digits) <= MAX_DIGITS else None
