"""Tasks whose samples are the rows of a published file: LongBench, InfiniteBench, SCROLLS, L-Eval, BAMBOO, LooGLE."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from longlens.errors import shown_value
from longlens.tasks.base import Sample
from longlens.tasks.data import DataFile, FolderTask
from longlens.tasks.fitting import Draft, Plan, TokenCounter, Whole
from longlens.tasks.metrics.rouge import rouge_f

LETTERS = ("A", "B", "C", "D")
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Names of scores, and of the package rouge-score."""
GEOMETRIC = "rouge"
"""The score that is the geometric mean of these, over all samples together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRow:
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
    """A dataset of a suite.

    Attributes:
        prompt: Upstream's up to where the answer begins, with the suite's fields such as ``{context}``.
        metric: The score that the suite reports.
        joint: Whether it is of all samples together.
        max_new_tokens: Tokens of an answer.
        prefix: How the answer begins; whitespace at its end belongs to the answer.
        category: Part of the suite.
        stop: Where an answer ends.
        template: How prompts are put to a chat model, see `longlens.tasks.Task`.
    """

    prompt: str
    metric: str
    max_new_tokens: int
    joint: bool = False
    prefix: str = ""
    category: str = ""
    stop: tuple[str, ...] = ()
    template: str = "chat-prefix"


@dataclass(frozen=True, kw_only=True)
class RowsTask(FolderTask):
    """A dataset of a suite, sample i from question i of its file."""

    name: str

    fills = False
    overlong = "middle"
    unit_tokens = 0  # a sample is all of its row

    @property
    @abstractmethod
    def file(self) -> DataFile:
        """The file of the dataset."""

    @abstractmethod
    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """What a row's sample says.

        Args:
            row: The row.
            key: Seed and index, for what is drawn.
        """

    def questions(self, rows: Sequence[DataRow]) -> list[DataRow]:
        """One `DataRow` a question."""
        return list(rows)

    @cached_property
    def data(self) -> tuple[list[DataRow], dict[str, str]]:
        """One `DataRow` a question, and what describes the file.

        Raises:
            UserError: The file is missing, or is broken.
        """
        rows, described = self.file.rows(self.name, self.data_dir, getattr(self, "revision", None))
        found = [DataRow(values=row, place=f"{described['file']}, row {n}") for n, row in enumerate(rows, start=1)]
        return self.questions(found), described

    @property
    def default_samples(self) -> int:
        """As many as the file has."""
        return len(self.data[0])

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """The row's prompt, all of it."""
        rows, described = self.data
        self.check_index(index, len(rows), described["file"], f"rows ({self.default_samples} in the whole file)")
        return Whole(self.draft(rows[index], (seed, index)))

    def make_draft(
        self,
        prompt: str,
        prefix: str,
        *,
        answers: Sequence[str],
        context: tuple[int, int],
        metadata: Mapping[str, Any],
    ) -> Draft:
        """A draft whose prompt and answer prefix do not end in whitespace; `target` gives that back.

        Args:
            prompt: Upstream's, up to where the answer begins.
            prefix: How the answer begins.
            answers: The right answers.
            context: ``[start, end)`` of the long text in the prompt.
            metadata: Metadata of the sample.
        """
        bare, whole = prompt.rstrip(), prompt + prefix
        kept = whole.rstrip()[len(bare) :]
        return Draft(
            prompt=bare,
            answer_prefix=kept,
            answers=answers,
            answer_spans=[],
            context_span=(context[0], min(context[1], len(bare))),
            metadata={"white_space": whole[len(bare + kept) :], "data": self.data[1], **metadata},
        )

    def target(self, sample: Sample) -> str | None:
        """The only answer, after the whitespace that upstream's prompt ends with, else after a space."""
        return (sample.metadata["white_space"] or " ") + sample.answers[0] if len(sample.answers) == 1 else None

    def text(self, row: DataRow, key: str) -> str:
        """A text of the row."""
        return str(self.file.get(row.values, key, str, row.place))

    def texts(self, row: DataRow, key: str, kinds: type | tuple[type, ...] = str) -> list[Any]:
        """A list of the row with at least one value, each of these kinds."""
        values = self.file.get(row.values, key, list, row.place)
        if not values or not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            raise self.file.wrong(
                row.place, f"{key} is not a list of at least one {'string' if kinds is str else 'value'}"
            )
        return list(values)


@dataclass(frozen=True, kw_only=True)
class SubsetTask(RowsTask):
    """A `RowsTask` whose facts are in a table of `Subset`.

    Attributes:
        dataset: A key of the table.
    """

    dataset: str

    sets: ClassVar[Mapping[str, Subset]]
    """The table."""

    @property
    def facts(self) -> Subset:
        """What the suite says of the dataset."""
        return self.sets[self.dataset]

    def __post_init__(self) -> None:
        """Takes over what the table says."""
        for attribute in ("max_new_tokens", "metric", "joint", "category", "stop", "template"):
            object.__setattr__(self, attribute, getattr(self.facts, attribute))

    def fill(self, metadata: Mapping[str, Any], answers: Sequence[str], *, context: str, **fields: str) -> Draft:
        """The table's prompt with its fields filled in.

        Args:
            metadata: Metadata of the sample.
            answers: The right answers.
            context: The long text.
            fields: The others.
        """
        before, _, after = self.facts.prompt.partition("{context}")
        before, after = before.format(**fields), after.format(**fields)
        span = (len(before), len(before) + len(context))
        prefix = self.facts.prefix.format(**fields)
        return self.make_draft(before + context + after, prefix, answers=answers, context=span, metadata=metadata)


def letter_of(task: RowsTask, row: DataRow, answer: Any, options: Sequence[str]) -> str:
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


def rouge_scores(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """``rouge_1``, ``rouge_2`` and ``rouge_l`` of SCROLLS, ZeroSCROLLS and L-Eval, best over the answers."""
    found = rouge_f(prediction, answers, *ROUGE.values())
    return {name: found[kind] for name, kind in ROUGE.items()}


def with_geometric_mean(means: dict[str, float]) -> dict[str, float]:
    """Means in percent, and the geometric mean of those of ROUGE where they are there."""
    if set(ROUGE) <= set(means):
        means[GEOMETRIC] = math.prod(means[name] for name in ROUGE) ** (1 / len(ROUGE))
    return means
