"""What HELMET's RAG and re-ranking share: a question on passages, which its files hold ready for each length."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from longlens.errors import UserError
from longlens.tasks.base import Task, draws
from longlens.tasks.data import DataFile
from longlens.tasks.fitting import Draft, Plan, Tokens, Whole
from longlens.tasks.helmet.lengths import nominal_length
from longlens.tasks.helmet.lines import Lines, read_lines
from longlens.tasks.helmet.questions import demonstrations, parted, sample_order


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A row.

    Attributes:
        question: What is asked.
        passages: As the prompt shows them.
        shown: The answer, as a demonstration gives it.
        answers: All right ones.
        metadata: What a sample says of it.
    """

    question: str
    passages: Sequence[str]
    shown: str
    answers: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class QuestionOnPassages(Task):
    """What a task says of its files and its prompt.

    Attributes:
        sizes: Passages by nominal length.
        instruction: What the prompt begins with.
        asks: What stands before a question.
        prefix: What stands before an answer.
    """

    sizes: Mapping[int, int]
    instruction: str
    asks: str
    prefix: str

    suite = "helmet"
    template = "none"  # rag.yaml, rerank.yaml: use_chat_template: false
    stop = ("\n",)  # rag.yaml, rerank.yaml: stop_new_line: true; model_utils.py: ["\n", "\n\n"]
    fills = False
    overlong = "context-only"  # model_utils.py, tokenize: the context loses its end
    unit_tokens = 0  # a sample is one unit

    @abstractmethod
    def file(self, passages: int) -> DataFile:
        """The questions with so many passages each."""

    @property
    @abstractmethod
    def shown_file(self) -> DataFile:
        """The demonstrations."""

    @abstractmethod
    def key(self, file: DataFile, row: Mapping[str, Any], place: str) -> str | None:
        """Which question a row is of; None for a row that does not count."""

    @abstractmethod
    def read(self, file: DataFile, row: Mapping[str, Any], place: str) -> Asked:
        """A row, checked."""

    def evidence(self, asked: Asked, context: str) -> list[tuple[int, int]]:
        """Where answers stand in the context."""
        return []


@dataclass(frozen=True, kw_only=True)
class PassageTask(QuestionOnPassages):
    """A question on passages; a sample is a row of the file for its length.

    Attributes:
        name: Of the task.
        passages: So many, whatever their tokens; the benchmark's number for the length unless given.
        shots: Demonstrations.
        data_dir: HELMET's data folder, or the folder in it that has the files.
    """

    name: str
    passages: int | None = None
    shots: int = 2  # rag.yaml, rerank.yaml: shots: 2
    data_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.passages is not None and self.passages < 1:
            raise UserError(f"passages={self.passages}; expected at least 1")
        if self.shots < 0:
            raise UserError(f"shots={self.shots}; expected at least 0")

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """Takes the row whose turn it is."""
        nominal = None if self.passages else nominal_length(self.name, length, self.sizes, "passages")
        lines = self._lines(self.file(self.passages or self.sizes[nominal or 0]))
        order = sample_order(lines.keys, draws(self.name, seed, 0, "questions"))
        if index >= len(order):
            raise UserError(
                f"{self.name}: {lines.described['file']} has {len(order)} rows: ask for as many samples at most"
            )
        row = order[index]
        key = lines.keys[row]
        made: dict[str, Any] = {"question": key, "nominal_length": nominal, "data": lines.described}
        shown: list[Asked] = []
        if self.shots:
            source = self._lines(self.shown_file)
            rows = demonstrations(source.keys, key, self.shots, self.name)
            shown = [self._asked(source, one) for one in rows]
            made["demonstrations"] = {"questions": [source.keys[one] for one in rows], **source.described}
        return Whole(self._draft(self._asked(lines, row), shown, made))

    @cached_property
    def _opened(self) -> dict[DataFile, Lines]:
        return {}

    def _lines(self, file: DataFile) -> Lines:
        if file not in self._opened:
            self._opened[file] = read_lines(file, self.name, self.data_dir, lambda row, at: self.key(file, row, at))
        return self._opened[file]

    def _asked(self, lines: Lines, row: int) -> Asked:
        return self.read(lines.file, lines.row(row), lines.place(row))

    def _draft(self, asked: Asked, shown: Sequence[Asked], made: Mapping[str, Any]) -> Draft:
        examples = [f"{self._question(one)}{self.prefix} {one.shown}\n\n" for one in shown]
        before = self.instruction + "".join(examples)
        prompt, prefix = parted(before + self._question(asked), self.prefix)
        context = "\n\n".join(asked.passages)
        start = len(before)
        return Draft(
            prompt=prompt,
            answer_prefix=prefix,
            answers=asked.answers,
            answer_spans=[(start + first, start + end) for first, end in self.evidence(asked, context)],
            context_span=(start, start + len(context)),
            metadata={"passages": len(asked.passages), **asked.metadata, **made},
        )

    def _question(self, asked: Asked) -> str:
        return "\n\n".join([*asked.passages, self.asks + asked.question])
