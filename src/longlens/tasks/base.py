"""What a task is: it builds samples, scores a prediction, and sums scores up. No model is run here."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
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
        context_span: ``[start, end)`` in characters of ``prompt``: the long text that the question is about, without
            instructions and demonstrations; None where a task has no such part.
        metadata: Task and settings, seed, index, requested length, units, depths of the needles in percent of the
            text, hashes of haystack or data; ``distractors`` where a task has wrong answers of the right kind to
            choose from; ``cut`` where the text was shortened, see `longlens.tasks.overlong`.
    """

    id: str
    prompt: str
    answer_prefix: str
    answers: list[str]
    answer_spans: list[tuple[int, int]]
    length: int
    context_span: tuple[int, int] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """A benchmark's task. Its settings are the fields of the dataclass that it is.

    Attributes:
        name: As in `longlens.tasks.list_tasks`.
        max_new_tokens: Tokens that an answer may have; part of a sample's length.
        suite: The benchmark that it is a part of, such as ``ruler``; its own name where it is one by itself.
        category: Its part of the suite's average, such as HELMET's ``rag``; empty where the suite has no parts.
        metric: The score that the benchmark reports, a key of what `aggregate` gives, and `score` unless `joint`.
        joint: Whether that score is of all samples together, as F1 over a set is, so that single ones have none.
        stop: Where an answer ends, besides at the end of text.
        template: How the benchmark puts its prompts to a chat model: ``none``, as they are; ``chat``, the prompt as a
            user's message; ``chat-prefix``, with the answer prefix at its end; ``prefill``, with the answer prefix as
            the begin of the reply.
        fills: Whether samples are made as long as asked for; else they are as long as their data, and
            `overlong` says what is done with one that is longer.
        overlong: The benchmark's own policy for samples that are too long, one of `longlens.tasks.overlong.POLICIES`.
        omission: What stands in a context in place of what was cut off its end.
    """

    name: str
    max_new_tokens: int
    suite: str
    metric: str
    joint: bool = False
    category: str = ""
    stop: tuple[str, ...] = ()
    template: str = "prefill"
    fills: bool = True
    overlong: str = "error"
    omission: str = ""

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

    def target(self, sample: Sample) -> str | None:
        """What a model that answers rightly continues with; None where no single text is the right one.

        It begins as the answer would, thus with a space where the answer prefix ends in a word.
        """
        return (" " if sample.answer_prefix else "") + sample.answers[0] if len(sample.answers) == 1 else None

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means in percent over the samples that have a score: ``{name: 100 * mean of scores[i][name]}``.

        Raises:
            UserError: There are none.
        """
        if not scores:
            raise UserError(f"{self.name}: no scores to sum up; score at least one sample")
        values: dict[str, list[float]] = {}
        for row in scores:
            for name, value in row.items():
                values.setdefault(name, []).append(value)
        return {name: sum(column) / len(column) * 100 for name, column in values.items()}

    def build(
        self,
        *,
        length: int | None = None,
        samples: int | None = None,
        seed: int = SEED,
        tokenizer: Any,
        reserve: int = 0,
        overlong: str | None = None,
    ) -> list[Sample]:
        """Samples 0 to ``samples - 1``; each is a function of the task, length, seed, its index and the tokenizer.

        ``length - reserve - unit_tokens < sample.length <= length - reserve``, unless settings or data fix the units.

        Args:
            length: Tokens of prompt, answer prefix and answer, at most. None only where settings or data fix the units.
            samples: The benchmark's own number unless given.
            seed: Of all random choices.
            tokenizer: Of transformers.
            reserve: Tokens that are left for a chat template.
            overlong: What to do with a sample that settings or data make too long, one of
                `longlens.tasks.overlong.POLICIES`; the benchmark's own policy unless given. With ``skip`` there are
                fewer samples, and the indexes in their ids have gaps.

        Raises:
            UserError: The length is too short, which the message says how long it has to be; or values that make no
                sense; or the data of the task is missing or too small.
        """
        from longlens.tasks.building import built

        return built(
            self, length=length, samples=samples, seed=seed, tokenizer=tokenizer, reserve=reserve, overlong=overlong
        )


def complete_mean(values: Iterable[float | None]) -> float | None:
    """The mean, where no value is missing: over the others it would be another number under the same name."""
    known = list(values)
    there = [value for value in known if value is not None]
    return sum(there) / len(there) if len(there) == len(known) else None


def draws(task: str, seed: int, index: int, stream: str) -> Random:
    """Random numbers of one sample and one purpose: the same ones in any order, at any length, on any machine."""
    key = json.dumps([task, seed, index, stream])
    return Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
