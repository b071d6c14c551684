"""Tasks whose samples are the rows of a published file: LongBench, InfiniteBench, SCROLLS, L-Eval, BAMBOO, LooGLE."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from longlens.errors import UserError, shown_value
from longlens.tasks.base import Sample, Task
from longlens.tasks.data import DataFile
from longlens.tasks.fitting import Draft, Plan, Tokens, Whole

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one sample is made of.

    Attributes:
        values: The row of the file.
        place: File and number, for messages.
        item: Which question of the row this is, where a row has several; or all answers, where several rows have one
            question.
    """

    values: Mapping[str, Any]
    place: str
    item: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """A data set of a suite.

    Attributes:
        prompt: Upstream's up to where the answer begins, with the suite's fields such as ``{context}``.
        metric: The score that the suite reports.
        joint: Whether it is of all samples together.
        max_new_tokens: Tokens of an answer.
        prefix: How the answer begins; white space at its end belongs to the answer.
        category: Part of the suite.
        stop: Where an answer ends.
    """

    prompt: str
    metric: str
    max_new_tokens: int
    joint: bool = False
    prefix: str = ""
    category: str = ""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RowsTask(Task):
    """A data set of a suite, sample i from question i of its file.

    Attributes:
        name: Of the task.
        data_dir: The folder that has the file; the hub's unless given, where the hub has it.
    """

    name: str
    data_dir: str | os.PathLike[str] | None = None

    template = "chat-prefix"
    fills = False
    overlong = "middle"
    unit_tokens = 0  # a sample is all of its row

    @property
    @abstractmethod
    def file(self) -> DataFile:
        """The file of the data set."""

    @abstractmethod
    def asked(self, row: Row, key: tuple[int, int]) -> Draft:
        """The sample of a row.

        Args:
            row: The row.
            key: Seed and index, for what is drawn.
        """

    def questions(self, rows: Sequence[Row]) -> list[Row]:
        """One `Row` a question."""
        return list(rows)

    @cached_property
    def data(self) -> tuple[list[Row], dict[str, str]]:
        """One `Row` a question, and what describes the file.

        Raises:
            UserError: The file is missing, or is broken.
        """
        rows, described = self.file.rows(self.name, self.data_dir, getattr(self, "revision", None))
        found = [Row(values=row, place=f"{described['file']}, row {n}") for n, row in enumerate(rows, start=1)]
        return self.questions(found), described

    @property
    def default_samples(self) -> int:
        """As many as the file has."""
        return len(self.data[0])

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """The row's prompt, all of it."""
        rows, described = self.data
        if index >= len(rows):
            wanted = max(index + 1, self.default_samples)
            raise UserError(
                f"{self.name}: {described['file']} has {len(rows)} rows; expected {wanted}: ask for as "
                "many samples at most as there are, or get the whole file"
            )
        return Whole(self.asked(rows[index], (seed, index)))

    def draft(
        self,
        begun: str,
        prefix: str,
        *,
        answers: Sequence[str],
        context: tuple[int, int] | None,
        metadata: Mapping[str, Any],
    ) -> Draft:
        """A draft whose prompt and answer prefix do not end in white space; `target` gives that back.

        Args:
            begun: Upstream's prompt up to where the answer begins.
            prefix: How the answer begins.
            answers: The right answers.
            context: ``[start, end)`` of the long text in ``begun``.
            metadata: Of the sample.
        """
        prompt, whole = begun.rstrip(), begun + prefix
        kept = whole.rstrip()[len(prompt) :]
        more = {"white_space": whole[len(prompt + kept) :], "data": self.data[1]}
        span = None if context is None else (context[0], min(context[1], len(prompt)))
        return Draft(
            prompt=prompt,
            answer_prefix=kept,
            answers=answers,
            answer_spans=[],
            context_span=span,
            metadata={**more, **metadata},
        )

    def target(self, sample: Sample) -> str | None:
        """The only answer, after the white space that upstream's prompt ends with, else after a space."""
        return (sample.metadata["white_space"] or " ") + sample.answers[0] if len(sample.answers) == 1 else None

    def text(self, row: Row, key: str) -> str:
        """A text of the row."""
        return str(self.file.get(row.values, key, str, row.place))

    def texts(self, row: Row, key: str, kinds: type | tuple[type, ...] = str) -> list[Any]:
        """A list of the row with at least one value, each of these kinds."""
        values = self.file.get(row.values, key, list, row.place)
        if not values or not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            raise self.file.wrong(row.place, f"{key} is no list of at least one {'text' if kinds is str else 'value'}")
        return list(values)


@dataclass(frozen=True, kw_only=True)
class SubsetTask(RowsTask):
    """A `RowsTask` whose facts stand in a table of `Subset`.

    Attributes:
        name: Of the task.
        dataset: A key of the table.
        data_dir: As in `RowsTask`.
    """

    dataset: str

    sets: ClassVar[Mapping[str, Subset]]
    """The table."""

    @property
    def facts(self) -> Subset:
        """What the suite says of the data set."""
        return self.sets[self.dataset]

    def __post_init__(self) -> None:
        """Takes over what the table says."""
        for attribute in ("max_new_tokens", "metric", "joint", "category", "stop"):
            object.__setattr__(self, attribute, getattr(self.facts, attribute))

    def filled(self, metadata: Mapping[str, Any], answers: Sequence[str], *, context: str, **fields: str) -> Draft:
        """The table's prompt with its fields filled in.

        Args:
            metadata: Of the sample.
            answers: The right answers.
            context: The long text.
            fields: The others.
        """
        before, _, after = self.facts.prompt.partition("{context}")
        before, after = before.format(**fields), after.format(**fields)
        span = (len(before), len(before) + len(context))
        prefix = self.facts.prefix.format(**fields)
        return self.draft(before + context + after, prefix, answers=answers, context=span, metadata=metadata)


def letter_of(task: RowsTask, row: Row, answer: Any, options: Sequence[str]) -> str:
    """The letter of the right option.

    Raises:
        UserError: The answer is no letter and none of the options.
    """
    if answer in options:
        return LETTERS[options.index(answer)]
    if answer in LETTERS:
        return str(answer)
    raise task.file.wrong(row.place, f"the answer {shown_value(answer)} is none of the options")


def other_letters(letter: str) -> list[str]:
    """The wrong ones."""
    return [other for other in LETTERS if other != letter]


def corpus_means(scores: Sequence[Mapping[str, float]], *names: str) -> list[float]:
    """Means of these scores over all samples, from 0 to 1."""
    return [sum(row[name] for row in scores) / len(scores) for name in names]
