"""Words that keys and lists are made of: the lists of the package `wonderwords`, as in RULER and LongEval."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from random import Random

from longlens.errors import require


@lru_cache
def word_list(kind: str) -> tuple[str, ...]:
    """All words of a kind in the order of the alphabet: 910 of ``adjective``, 6,782 of ``noun``, 1,041 of ``verb``.

    Raises:
        UserError: The package is not installed.
    """
    wonderwords = require("wonderwords", extra="tasks", purpose="a task whose keys are words")
    return tuple(sorted(set(wonderwords.RandomWord().filter(include_categories=[kind]))))


def words(rng: Random) -> str:
    """An adjective and a noun, such as ``torpid-kid``: one of 6.17 million."""
    return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"


def numbers(rng: Random) -> str:
    """A number of seven digits."""
    return str(rng.randint(10**6, 10**7 - 1))


def uuids(rng: Random) -> str:
    """A UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def distinct(draw: Callable[[Random], str], rng: Random, taken: set[str] | None = None) -> Iterator[str]:
    """Endless draws, none of them twice and none of them ``taken``."""
    seen = set() if taken is None else set(taken)
    while True:
        if (value := draw(rng)) not in seen:
            seen.add(value)
            yield value


def longest(*kinds: str) -> int:
    """Bytes of the longest word of some kinds, put together with hyphens."""
    return sum(max(len(word.encode()) for word in word_list(kind)) + 1 for kind in kinds) - 1
