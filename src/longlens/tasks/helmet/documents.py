"""What HELMET's questions on long documents and its summaries share: one long text, whose end is cut off to fit.

Known differences to HELMET's data.py: the text is cut with the tokenizer of the model to the length asked for, where
HELMET cuts it with Llama 2's to 200 tokens less than length and answer leave, the same text for every model
(``truncate_llama2``); HELMET has only documents of a least number of Llama-2 tokens, for which ``min_characters`` is
there; which documents come and which demonstrations is drawn otherwise: HELMET draws with the shuffle of datasets, for
NarrativeQA's and Multi-LexSum's demonstrations without a seed, thus anew in each run.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from longlens.errors import UserError
from longlens.tasks.base import Task, draws
from longlens.tasks.data import DataFile
from longlens.tasks.fitting import Draft, Plan, Tokens, Whole
from longlens.tasks.helmet.questions import parted


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A row.

    Attributes:
        text: The document; empty where the row serves as a demonstration alone.
        question: What is asked; empty for summaries.
        answers: The right ones; the first is shown in a demonstration.
        metadata: What a sample says of it.
    """

    text: str
    question: str = ""
    answers: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


Documents = tuple[Sequence[Document], dict[str, str]]
"""Rows, and what describes their file."""


@dataclass(frozen=True, kw_only=True)
class DocumentTask(Task):
    """A task on one long document: instruction, demonstrations, document, what is asked.

    Samples take the documents in an order that the seed gives; a document with several questions is there as often.

    Attributes:
        name: Of the task.
        shots: Demonstrations, without their documents.
        min_characters: Shorter documents are left out. HELMET's least numbers of Llama-2 tokens, of some four
            characters each in English prose: 131,073 for NarrativeQA, 65,536 for the others, at every length.
        data_dir: The folder that has the files.
        revision: Branch, tag or commit of a data set of the hub.
        file: The documents.
        instruction: What the prompt begins with.
        begins: Before the demonstrations.
        shown: One of them, of ``{question}`` and ``{answer}``.
        ends: After them.
        lead: Before the document.
        asks: After the document, of ``{question}``.
        prefix: What stands before the answer.
    """

    name: str
    shots: int = 2  # longqa.yaml, summ.yaml: shots: 2
    min_characters: int = 0
    data_dir: str | os.PathLike[str] | None = None
    revision: str | None = None

    file: ClassVar[DataFile]
    instruction: ClassVar[str]
    begins: ClassVar[str]
    shown: ClassVar[str]
    ends: ClassVar[str]
    lead: ClassVar[str] = ""
    asks: ClassVar[str]
    prefix: ClassVar[str]

    suite = "helmet"
    default_samples = 100  # longqa.yaml, summ.yaml: max_test_samples: 100
    fills = False
    overlong = "context-only"  # data.py, truncate_llama2, and model_utils.py, tokenize
    omission = " ... [the rest of the text is omitted]"  # data.py, truncate_llama2: postfix_text
    unit_tokens = 0  # a sample is one unit

    def __post_init__(self) -> None:
        """Checks the values."""
        for what, value in (("shots", self.shots), ("min_characters", self.min_characters)):
            if value < 0:
                raise UserError(f"{what}={value}; expected at least 0")

    @abstractmethod
    def read(self, row: Mapping[str, Any], place: str) -> Document | None:
        """A row, checked; None for one that does not count."""

    @cached_property
    def documents(self) -> Documents:
        """All rows that count.

        Raises:
            UserError: The file is missing, or has another schema.
        """
        rows, described = self.file.rows(self.name, self.data_dir, self.revision)
        places = (f"{described['file']}, row {number}" for number in range(1, len(rows) + 1))
        read = [self.read(row, place) for row, place in zip(rows, places, strict=True)]
        return [document for document in read if document is not None], described

    @cached_property
    def examples(self) -> Documents:
        """What demonstrations are drawn from: the other documents, unless a task has a file for them."""
        return self.documents

    def shown_answer(self, document: Document) -> str:
        """What a demonstration answers."""
        return document.answers[0]

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """Takes the document whose turn it is, and draws the demonstrations."""
        document, described = self._document(seed, index)
        before = self.instruction + self._demonstrations(document, seed, index) + self.lead
        asked = self.asks.format(question=document.question)
        prompt, prefix = parted(before + document.text + asked, self.prefix)
        made = {"question": document.question, "data": described, **document.metadata}
        if self.shots and self.examples is not self.documents:
            made["demonstrations"] = self.examples[1]
        return Whole(
            Draft(
                prompt=prompt,
                answer_prefix=prefix,
                answers=document.answers,
                answer_spans=[],
                context_span=(len(before), len(before) + len(document.text)),
                metadata=made,
            )
        )

    def _document(self, seed: int, index: int) -> tuple[Document, dict[str, str]]:
        documents, described = self.documents
        long = [document for document in documents if len(document.text) >= self.min_characters]
        if index >= len(long):
            least = f" of at least {self.min_characters:,} characters" if self.min_characters else ""
            raise UserError(
                f"{self.name}: {described['file']} has {len(long)} documents{least}: ask for as many samples at most"
            )
        draws(self.name, seed, 0, "documents").shuffle(long)
        return long[index], described

    def _demonstrations(self, document: Document, seed: int, index: int) -> str:
        if not self.shots:
            return ""
        rows, described = self.examples
        others = [one for one in rows if one is not document]
        if len(others) < self.shots:
            raise UserError(
                f"{self.name}: shots={self.shots}, but {described['file']} has {len(others)} rows to show: give shots="
                f"{len(others)} at most"
            )
        drawn = draws(self.name, seed, index, "demonstrations").sample(others, self.shots)
        texts = [self.shown.format(question=one.question, answer=self.shown_answer(one)) for one in drawn]
        return self.begins + "\n\n".join(texts) + self.ends
