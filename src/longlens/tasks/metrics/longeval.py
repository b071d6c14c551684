"""LongEval: the number that an answer ends with."""

from __future__ import annotations

import re

from longlens.tasks.metrics.digits import integer


def last_integer(text: str) -> int | None:
    r"""``int(re.findall(r"\d+", text)[-1])``, None where there is no digit (LongEval says -1, equally wrong).

    Oddities: the last number counts even where it is not the answer (``"<2416> (line 7)"`` is 7); signs, decimal
    points and commas separate (``"12,345"`` is 345, ``"1.5"`` is 5); digits of any script are digits.

    Source: LongChat ``longeval/utils.py``, `test_lines_one_sample`. A run of more than 4300 digits, at which that code
    fails, is None here.
    """
    numbers = re.findall(r"\d+", text)
    return integer(numbers[-1]) if numbers else None


def last_integer_with_commas(text: str) -> int | None:
    """`last_integer`, with commas between groups of three digits as part of the number: ``"12,345"`` is 12345."""
    numbers = re.findall(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)|\d+", text)
    return integer(numbers[-1].replace(",", "")) if numbers else None
