"""Questions on numbered documents, whose answers name the documents that say so: what ALCE's tasks in HELMET share.

Prompts: ``load_alce`` in data.py of princeton-nlp/HELMET at 4526dfb, MIT; settings: configs/cite.yaml. Known
differences: a length is filled with as many documents as it holds, unless ``docs`` fixes their number as HELMET does;
demonstrations are drawn for each sample, where HELMET draws them from Python's global random numbers; documents lose
white space at their ends; a number cited that the prompt does not have is out of range, where HELMET looks it up among
all 2,000 documents of the row, so that one that the model has not seen may support a claim, and counts for precision.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from longlens.errors import UserError
from longlens.tasks.base import Sample, draws
from longlens.tasks.data import DataFile
from longlens.tasks.fitting import Draft, Plan, Tokens
from longlens.tasks.helmet.lengths import by_length
from longlens.tasks.helmet.questions import parted
from longlens.tasks.helmet.rag import found
from longlens.tasks.judged import CitedTask, Entails
from longlens.tasks.layout import starts_of

# generate_configs.py, alce_asqa and alce_qampari: ["_8", "_30", "_75", "_165", "_345", "_700"]
DOCUMENTS = by_length(8, 30, 75, 165, 345, 700)
"""HELMET's documents for a nominal length: ``get_task("helmet_asqa", docs=DOCUMENTS[8192])``."""
HEAD, BETWEEN = "Document [{number}](Title: ", "): "  # doc_prompt: "Document [{ID}](Title: {title}): {text}"
PREFIX = "\n\nAnswer:"


class Passage(NamedTuple):
    """A retrieved document."""

    title: str
    text: str

    def shown(self, number: int) -> str:
        """As it stands in a prompt."""
        return f"{HEAD.format(number=number)}{self.title}{BETWEEN}{self.text}"


class Question(NamedTuple):
    """A row: of each group of answers, any one will do."""

    text: str
    passages: Sequence[Passage]
    groups: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class CitationTask(CitedTask):
    """A question on numbered documents, whose answer names those that say so.

    Attributes:
        name: Of the task.
        docs: So many documents, whatever their tokens, as HELMET has them (`DOCUMENTS`); as many as the length holds
            unless given.
        shots: Demonstrations.
        data_dir: The folder that has the files; HELMET's own, with ``data`` and ``prompts`` in it, will do.
        file: The questions.
        demo_file: The demonstrations.
        instruction: What is asked for.
        demo_prefix: What stands before the answer of a demonstration.
        is_list: Whether claims are the items of a list, and not sentences.
    """

    name: str
    docs: int | None = None
    shots: int = 2  # cite.yaml: shots: 2
    data_dir: str | os.PathLike[str] | None = None

    file: ClassVar[DataFile]
    demo_file: ClassVar[DataFile]
    instruction: ClassVar[str]
    demo_prefix: ClassVar[str]
    is_list: ClassVar[bool] = False

    suite = "helmet"
    category = "cite"
    max_new_tokens = 300  # cite.yaml: generation_max_length: 300
    default_samples = 100  # cite.yaml: max_test_samples: 100

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.docs is not None and self.docs < 1:
            raise UserError(f"docs={self.docs}; expected at least 1")
        if self.shots < 0:
            raise UserError(f"shots={self.shots}; expected at least 0")

    @abstractmethod
    def groups(self, row: Mapping[str, Any], place: str) -> list[list[str]]:
        """The right answers of a row, in groups of which any one will do."""

    @cached_property
    def data(self) -> tuple[Sequence[Question], dict[str, str]]:
        """The questions, and what describes their file.

        Raises:
            UserError: It is missing, or has another schema.
        """
        rows, described = self.file.rows(self.name, self.data_dir)
        questions = []
        for number, row in enumerate(rows, start=1):
            place = f"{described['file']}, row {number}"
            groups = self.groups(row, place)
            if not groups or not all(groups):
                raise self.file.wrong(place, "no answers")
            text = self.file.get(row, "question", str, place)
            questions.append(Question(text, _passages(self.file, row, place), groups))
        return questions, described

    @cached_property
    def demonstrations(self) -> tuple[Sequence[str], dict[str, str]]:
        """The demonstrations as they stand in a prompt, and what describes their file.

        Raises:
            UserError: It is missing, has another schema, or too few.
        """
        text, described = self.demo_file.read(self.name, self.data_dir)
        name = described["file"]
        get = self.demo_file.get
        rows = get(self.demo_file.parse(text, name), "demos", list, name)
        if len(rows) < self.shots:
            raise UserError(f"{self.name}: shots={self.shots}, but {name} has {len(rows)} demonstrations: give fewer")
        shown = []
        for number, row in enumerate(rows, start=1):
            place = f"{name}, demonstration {number}"
            blocks = _blocks(_passages(self.demo_file, row, place))
            asked, answer = get(row, "question", str, place), get(row, "answer", str, place)
            shown.append(f"{self.asked(asked)}\n\n{_joined(blocks)}{self.demo_prefix} {answer}")
        return shown, described

    def asked(self, question: str) -> str:
        """What stands before the documents."""
        return f"{self.instruction}\n\nQuestion: {question}"

    @cached_property
    def unit_tokens(self) -> int:
        """A document, at most the longest one."""
        longest = max(len(passage.shown(10**6).encode()) for question in self.data[0] for passage in question.passages)
        return len("\n\n") + longest

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """Takes the question whose turn it is, and draws the demonstrations."""
        questions, described = self.data
        if index >= len(questions):
            raise UserError(
                f"{self.name}: {described['file']} has {len(questions)} questions: ask for as many samples at most"
            )
        order = list(range(len(questions)))
        draws(self.name, seed, 0, "questions").shuffle(order)
        question = questions[order[index]]
        if self.docs is not None and self.docs > len(question.passages):
            raise UserError(
                f"{self.name}: docs={self.docs}, but {described['file']} has {len(question.passages)} documents for "
                f"{question.text!r}: give fewer"
            )
        made: dict[str, Any] = {"data": described}
        shown: list[str] = []
        if self.shots:
            rows, made["demonstrations"] = self.demonstrations
            shown = draws(self.name, seed, index, "demonstrations").sample(list(rows), self.shots)
        return _Documents(self, question, "".join(f"{one}\n\n\n" for one in shown), made)

    def cited(self, sample: Sample, prediction: str, entails: Entails) -> dict[str, float]:
        """``citation_recall`` and ``citation_precision``, see `longlens.tasks.metrics.citation_scores`."""
        from longlens.tasks import metrics

        question = sample.metadata["question"] if self.is_list else None
        scores = metrics.citation_scores(prediction, _cited_passages(sample), entails, question)
        if not scores["num_claims"]:
            return {}
        return {name: scores[name] / 100 for name in ("citation_recall", "citation_precision")}

    def target(self, sample: Sample) -> None:
        """None: an answer is more than one of the right ones."""
        return None


class _Documents(Plan):
    """Units are documents, the best ones first."""

    def __init__(self, task: CitationTask, question: Question, shown: str, made: Mapping[str, Any]) -> None:
        self._question, self._made = question, made
        self._before = f"{shown}{task.asked(question.text)}\n\n"
        self.minimum = task.docs or 1
        self.maximum = task.docs or len(question.passages)

    def unit(self, index: int) -> str:
        return f"\n\n{self._question.passages[index].shown(index + 1)}"

    def draft(self, units: int) -> Draft:
        passages = self._question.passages[:units]
        blocks = _blocks(passages)
        context = _joined(blocks)
        begin = len(self._before)
        answers = list(dict.fromkeys(answer for group in self._question.groups for answer in group))
        prompt, prefix = parted(self._before + context, PREFIX)
        return Draft(
            prompt=prompt,
            answer_prefix=prefix,
            answers=answers,
            answer_spans=[(begin + start, begin + end) for start, end in found(context, answers)],
            context_span=(begin, len(prompt)),
            metadata={
                "question": self._question.text,
                "answer_groups": [list(group) for group in self._question.groups],
                "documents": [
                    [begin + start + len(HEAD.format(number=number)), len(passage.title), len(passage.text)]
                    for number, (start, passage) in enumerate(zip(starts_of(blocks, "\n\n"), passages, strict=True), 1)
                ],
                **self._made,
            },
        )


def _blocks(passages: Sequence[Passage]) -> list[str]:
    return [passage.shown(number) for number, passage in enumerate(passages, start=1)]


def _joined(blocks: Sequence[str]) -> str:
    return "\n\n".join(blocks)


def _passages(file: DataFile, row: Mapping[str, Any], place: str) -> list[Passage]:
    docs = file.get(row, "docs", list, place)
    if not docs:
        raise file.wrong(place, "no docs")
    get = file.get
    return [Passage(get(one, "title", str, place), get(one, "text", str, place).rstrip()) for one in docs]


def _cited_passages(sample: Sample) -> list[dict[str, str]]:
    """The documents of a prompt, from where each title begins and how long title and text are."""
    passages = []
    for start, title, text in sample.metadata["documents"]:
        begin = start + title + len(BETWEEN)
        passages.append({"title": sample.prompt[start : start + title], "text": sample.prompt[begin : begin + text]})
    return passages
