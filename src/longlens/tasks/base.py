"""What a task is: it builds samples, scores a prediction, and sums scores up. No model is run here."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from longlens.errors import UserError
from longlens.tasks.fitting import Plan, Tokens

SEED = 42
"""RULER's and HELMET's seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A question on a long text.

    Attributes:
        id: Names it: task, length, seed and index.
        prompt: All that stands before the answer prefix.
        answer_prefix: How the answer begins; a model continues ``prompt + answer_prefix``.
        answers: The right answers; a task's metric says whether any or all of them are wanted.
        answer_spans: ``[start, end)`` in characters of ``prompt + answer_prefix``: where the answers stand in it.
        length: Tokens of ``prompt + answer_prefix`` as the tokenizer counts a text by default (thus with the BOS that
            it puts there), plus the task's `max_new_tokens`.
        metadata: Task and settings, seed, index, requested length, units, depths of the needles in percent of the
            text, hashes of haystack or data.
    """

    id: str
    prompt: str
    answer_prefix: str
    answers: list[str]
    answer_spans: list[tuple[int, int]]
    length: int
    metadata: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """A benchmark's task. Its settings are the fields of the dataclass that it is.

    Attributes:
        name: As in `longlens.tasks.list_tasks`.
        max_new_tokens: Tokens that an answer may have; part of a sample's length.
    """

    name: str
    max_new_tokens: int

    @property
    @abstractmethod
    def default_samples(self) -> int:
        """As many samples as the benchmark has."""

    @property
    @abstractmethod
    def unit_tokens(self) -> int:
        """Tokens by which one unit more makes a prompt longer, at most, if a token has at least a byte."""

    @abstractmethod
    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """The sample for any number of units.

        Args:
            length: Of prompt, answer prefix and answer; where settings change with it.
            seed: Of all random choices.
            index: Of the sample.
            tokens: Counts, for what is fitted within the sample.
        """

    @abstractmethod
    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Numbers from 0 to 1 for what a model wrote after the answer prefix."""

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means over samples, in percent: ``{name: 100 * mean of scores[i][name]}``.

        Raises:
            UserError: There are none.
        """
        if not scores:
            raise UserError(f"{self.name}: no scores to sum up; score at least one sample")
        return {name: sum(row[name] for row in scores) / len(scores) * 100 for name in scores[0]}

    def build(
        self,
        *,
        length: int | None = None,
        samples: int | None = None,
        seed: int = SEED,
        tokenizer: Any,
        reserve: int = 0,
    ) -> list[Sample]:
        """Samples 0 to ``samples - 1``; each is a function of the task, length, seed, its index and the tokenizer.

        ``length - reserve - unit_tokens < sample.length <= length - reserve``, unless settings fix the units.

        Args:
            length: Tokens of prompt, answer prefix and answer, at most. None only where settings fix the units.
            samples: The benchmark's own number unless given.
            seed: Of all random choices.
            tokenizer: Of transformers.
            reserve: Tokens that are left for a chat template.

        Raises:
            UserError: The length is too short, which the message says how long it has to be; or values that make no
                sense; or the data of the task is missing or too small.
        """
        from longlens.tasks.building import built

        return built(self, length=length, samples=samples, seed=seed, tokenizer=tokenizer, reserve=reserve)


def draws(task: str, seed: int, index: int, stream: str) -> Random:
    """Random numbers of one sample and one purpose: the same ones in any order, at any length, on any machine."""
    key = json.dumps([task, seed, index, stream])
    return Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
