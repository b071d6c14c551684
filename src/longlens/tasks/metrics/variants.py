"""Two benchmarks may mean different things by one metric's name; `variant` says whose is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from longlens.errors import UserError

Score = TypeVar("Score")


def chosen(variant: str, variants: Mapping[str, Score]) -> Score:
    """``variants[variant]``.

    Raises:
        UserError: There is no such variant.
    """
    if variant not in variants:
        raise UserError(f"no variant {variant!r}: expected one of {', '.join(variants)}")
    return variants[variant]
