"""Base classes of tasks that read the rows of a published file (LongBench, InfiniteBench, SCROLLS, L-Eval, ...)."""

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
"""Names of scores in longlens, and in the package rouge-score."""
GEOMETRIC = "rouge"
"""Name of the geometric mean of these scores, computed over all samples together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRow:
    """The source of one sample.

    Attributes:
        values: The row of the file.
        place: File and row number, for messages.
        item: Which question of the row this is, if a row has several; or all answers, if several rows have the same
            question.
    """

    values: Mapping[str, Any]
    place: str
    item: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """A dataset of a suite.

    Attributes:
        prompt: Upstream's prompt up to the answer, with the suite's fields such as ``{context}``.
        metric: The score that the suite reports.
        joint: Whether the score is computed over all samples together.
        max_new_tokens: Maximum number of tokens of an answer.
        prefix: The beginning of the answer; whitespace at its end belongs to the answer.
        category: Part of the suite.
        stop: Strings that end an answer.
        template: How prompts are sent to a chat model, see `longlens.tasks.Task`.
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
        """The draft of a row's sample.

        Args:
            row: The row.
            key: Seed and index, for random choices.
        """

    def questions(self, rows: Sequence[DataRow]) -> list[DataRow]:
        """One `DataRow` per question."""
        return list(rows)

    @cached_property
    def data(self) -> tuple[list[DataRow], dict[str, str]]:
        """One `DataRow` per question, and the description of the file.

        Raises:
            UserError: The file is missing or invalid.
        """
        rows, described = self.file.rows(self.name, self.data_dir, getattr(self, "revision", None))
        found = [DataRow(values=row, place=f"{described['file']}, row {n}") for n, row in enumerate(rows, start=1)]
        return self.questions(found), described

    @property
    def default_samples(self) -> int:
        """Number of questions in the file."""
        return len(self.data[0])

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A fixed plan with the whole prompt of the row."""
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
        """A draft whose prompt and answer prefix do not end in whitespace; `target` restores the whitespace.

        Args:
            prompt: Upstream's prompt, up to the answer.
            prefix: The beginning of the answer.
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
        """The only answer, after the whitespace at the end of upstream's prompt or, if it has none, after a space."""
        return (sample.metadata["white_space"] or " ") + sample.answers[0] if len(sample.answers) == 1 else None

    def text(self, row: DataRow, key: str) -> str:
        """A text of the row."""
        return str(self.file.get(row.values, key, str, row.place))

    def texts(self, row: DataRow, key: str, kinds: type | tuple[type, ...] = str) -> list[Any]:
        """A list of the row with at least one value, all of these types."""
        values = self.file.get(row.values, key, list, row.place)
        if not values or not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            raise self.file.wrong(
                row.place, f"{key} is not a list of at least one {'string' if kinds is str else 'value'}"
            )
        return list(values)


@dataclass(frozen=True, kw_only=True)
class SubsetTask(RowsTask):
    """A `RowsTask` that is defined by a table of `Subset`.

    Attributes:
        dataset: A key of the table.
    """

    dataset: str

    sets: ClassVar[Mapping[str, Subset]]
    """The table."""

    @property
    def facts(self) -> Subset:
        """The suite's definition of the dataset."""
        return self.sets[self.dataset]

    def __post_init__(self) -> None:
        """Copies attributes from the table."""
        for attribute in ("max_new_tokens", "metric", "joint", "category", "stop", "template"):
            object.__setattr__(self, attribute, getattr(self.facts, attribute))

    def fill(self, metadata: Mapping[str, Any], answers: Sequence[str], *, context: str, **fields: str) -> Draft:
        """A draft of the table's prompt with its fields filled in.

        Args:
            metadata: Metadata of the sample.
            answers: The right answers.
            context: The long text.
            fields: The other fields.
        """
        before, _, after = self.facts.prompt.partition("{context}")
        before, after = before.format(**fields), after.format(**fields)
        span = (len(before), len(before) + len(context))
        prefix = self.facts.prefix.format(**fields)
        return self.make_draft(before + context + after, prefix, answers=answers, context=span, metadata=metadata)


def letter_of(task: RowsTask, row: DataRow, answer: Any, options: Sequence[str]) -> str:
    """The letter of the right option.

    Raises:
        UserError: The answer is neither a letter nor one of the options.
    """
    if answer in options:
        return LETTERS[options.index(answer)]
    if answer in LETTERS:
        return str(answer)
    raise task.file.wrong(row.place, f"the answer {shown_value(answer)} is not one of the options")


def other_letters(letter: str) -> list[str]:
    """The letters of the wrong options."""
    return [other for other in LETTERS if other != letter]


def rouge_scores(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """``rouge_1``, ``rouge_2`` and ``rouge_l`` of SCROLLS, ZeroSCROLLS and L-Eval, best over the answers."""
    found = rouge_f(prediction, answers, *ROUGE.values())
    return {name: found[kind] for name, kind in ROUGE.items()}


def with_geometric_mean(means: dict[str, float]) -> dict[str, float]:
    """Adds the geometric mean of the ROUGE scores to means in percent, if all of them are present."""
    if set(ROUGE) <= set(means):
        means[GEOMETRIC] = math.prod(means[name] for name in ROUGE) ** (1 / len(ROUGE))
    return means
