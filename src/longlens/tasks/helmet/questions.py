"""Which questions samples ask, which others show how to answer, and where a prompt ends."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random

from longlens.errors import UserError

QUESTIONS = 100  # rag.yaml, rerank.yaml: max_test_samples: 100; data.py draws so many keys and keeps all their rows


def sample_order(keys: Sequence[str], rng: Random) -> list[int]:
    """Rows in the order in which samples take them; a question has a row for each depth of its right passage.

    Questions are in random order. The first `QUESTIONS` samples ask as many questions, each with another depth than the
    one before; the next ones ask them again until all their rows are used, which is HELMET's set; then come others.

    Args:
        keys: Which question each row is of.
        rng: Of the seed alone, so that the order is the same however many samples are asked for.
    """
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    questions = sorted(rows)
    rng.shuffle(questions)
    order: list[int] = []
    for first in range(0, len(questions), QUESTIONS):
        block = [rows[question] for question in questions[first : first + QUESTIONS]]
        for turn in range(max(map(len, block))):
            order += [own[(turn + place) % len(own)] for place, own in enumerate(block) if turn < len(own)]
    return order


def demonstrations(keys: Sequence[str], asked: str, shots: int, task: str) -> list[int]:
    """Rows that show how to answer: of different questions, none of them the one that is asked.

    They depend on the asked question alone, as in HELMET: the first ones of the other rows, shuffled with
    ``sha256(asked) % 2**31`` for a seed.

    Raises:
        UserError: There are too few.
    """
    rows = [row for row, key in enumerate(keys) if key != asked]
    Random(int(hashlib.sha256(asked.encode()).hexdigest(), 16) % 2**31).shuffle(rows)
    chosen: dict[str, int] = {}
    for row in rows:
        if len(chosen) == shots:
            break
        chosen.setdefault(keys[row], row)
    if len(chosen) < shots:
        raise UserError(
            f"{task}: shots={shots}, but the demonstrations are of {len(chosen)} other questions: give shots="
            f"{len(chosen)} at most"
        )
    return list(chosen.values())


def parted(prompt: str, prefix: str) -> tuple[str, str]:
    """Prompt and answer prefix, where a prompt must not end in white space: what it ends in goes over to the prefix."""
    bare = prompt.rstrip()
    return bare, prompt[len(bare) :] + prefix
