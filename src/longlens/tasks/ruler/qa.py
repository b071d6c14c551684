"""Builds RULER's QA, ``qa_1`` (SQuAD) and ``qa_2`` (HotpotQA): the right documents among others of the same dataset.

Prompt: ``qa`` in scripts/data/synthetic/constants.py and qa.py (NVIDIA/RULER c3f5e3b, Apache-2.0). Metric:
``string_match_part``. Data: files of the user, in the published schema; SQuAD 2.0 and HotpotQA are CC BY-SA 4.0.
Sample i asks question i of the file, as in RULER. Known difference, in addition to those of all tasks: if a length
needs more documents than exist, the gold ones occur once and the others are repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from longlens.tasks import metrics
from longlens.tasks.base import Sample, draws
from longlens.tasks.data import DataFile, FolderTask
from longlens.tasks.fitting import Draft, Plan, TokenCounter
from longlens.tasks.ruler.needles import RulerTask, clean
from longlens.tasks.synthetic import starts_of

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
)
BEFORE = f"{INSTRUCTION}The following are given documents.\n\n"
AFTER = f"\n\n{INSTRUCTION}Question: {{query}}"
PREFIX = " Answer:"

SQUAD = DataFile(
    names=("squad.json", "dev-v2.0.json"),
    source="https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
    schema="data[].paragraphs[] with context and qas[] with question, is_impossible and answers[] of text and "
    "answer_start",
)
HOTPOTQA = DataFile(
    names=("hotpotqa.json", "hotpot_dev_distractor_v1.json"),
    source="https://hotpotqa.github.io, file hotpot_dev_distractor_v1.json",
    schema="a list of question, answer, supporting_facts[] of [title, sentence] and context[] of [title, sentences]",
)


class RulerQuestion(NamedTuple):
    """A question; documents are indexes into the sorted list of all documents.

    Attributes:
        text: The question.
        answers: The answers, any of which is right.
        gold: Documents that every sample of the question contains.
        related: Documents that are used before others.
        evidence: Positions of answers: document, start and end.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    related: tuple[int, ...]
    evidence: frozenset[tuple[int, int, int]]


class QuestionFile(NamedTuple):
    """A file of questions: the questions, its sorted unique documents, and the description of the file."""

    questions: Sequence[RulerQuestion]
    documents: Sequence[str]
    described: dict[str, str]


Read = Callable[[Any, str], tuple[list[RulerQuestion], list[str]]]


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(FolderTask, RulerTask):
    """Questions about documents.

    Attributes:
        name: RULER's name.
        file: The data.
        read: Parses the schema of the file.
    """

    name: str
    file: DataFile
    read: Read

    metric = "string_match_part"
    max_new_tokens = 32  # constants.py: 'tokens_to_generate': 32

    @cached_property
    def data(self) -> QuestionFile:
        """The content of the file.

        Raises:
            UserError: The file is missing, or has another schema.
        """
        text, described = self.file.read(self.name, self.data_dir)
        questions, documents = self.read(self.file.parse(text, described["file"]), described["file"])
        if not questions:
            raise self.file.wrong(described["file"], "no question that has an answer")
        return QuestionFile(questions, documents, described)

    @property
    def unit_tokens(self) -> int:
        """Maximum size of a document: that of the longest one."""
        return len("\n\nDocument 1000000:\n") + max(len(text.encode()) for text in self.data.documents)

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with random documents in addition to the right ones."""
        self.check_index(index, len(self.data.questions), self.data.described["file"], "questions")
        return _Plan(self.data, (self.name, seed, index))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the prediction contains one of the answers, ignoring case."""
        return {"string_match_part": metrics.string_match_part([clean(prediction)], [sample.answers]) / 100}

    def target(self, sample: Sample) -> str | None:
        """The answer of most annotators, of equally frequent ones the first; others are also right."""
        return f" {max(sample.answers, key=sample.answers.count)}"


class _Plan(Plan):
    minimum = 0

    def __init__(self, data: QuestionFile, key: tuple[str, int, int]) -> None:
        self._data, self._key = data, key
        self._question = question = data.questions[key[2]]
        rng = draws(*key, "documents")
        related = list(question.related)
        apart = {*question.gold, *related}
        others = [number for number in range(len(data.documents)) if number not in apart]
        rng.shuffle(related)
        rng.shuffle(others)
        self._beside = related + others
        if not self._beside:
            self.maximum = 0

    def unit(self, index: int) -> str:
        return f"\n\nDocument {index + 1}:\n{self._data.documents[self._beside[index % len(self._beside)]]}"

    def draft(self, units: int) -> Draft:
        question = self._question
        gold = len(question.gold)
        chosen = [*question.gold, *(self._beside[index % len(self._beside)] for index in range(units))]
        order = list(range(len(chosen)))
        draws(*self._key, "order").shuffle(order)
        heads = [f"Document {number}:\n" for number in range(1, len(order) + 1)]
        blocks = [head + self._data.documents[chosen[place]] for head, place in zip(heads, order, strict=True)]
        starts = starts_of(blocks, "\n\n")
        text = "\n\n".join(blocks)
        at = {
            chosen[place]: len(BEFORE) + start + len(head)
            for place, start, head in zip(order, starts, heads, strict=True)
            if place < gold
        }
        return Draft(
            prompt=BEFORE + text + AFTER.format(query=question.text),
            answer_prefix=PREFIX,
            answers=question.answers,
            answer_spans=sorted((at[number] + start, at[number] + end) for number, start, end in question.evidence),
            metadata={
                "depths": sorted(round(100 * (place - len(BEFORE)) / len(text), 2) for place in at.values()),
                "documents": len(chosen),
                "data": self._data.described,
            },
        )


def read_squad(content: Any, name: str) -> tuple[list[RulerQuestion], list[str]]:
    """SQuAD 2.0: answerable questions, each with its paragraph; related documents are those of its article."""
    get = SQUAD.get
    articles = [get(article, "paragraphs", list, name) for article in get(content, "data", list, name)]
    documents = sorted({get(paragraph, "context", str, name) for article in articles for paragraph in article})
    number_of = {text: number for number, text in enumerate(documents)}
    questions = []
    for article in articles:
        related = list(dict.fromkeys(number_of[paragraph["context"]] for paragraph in article))
        for paragraph in article:
            gold = number_of[paragraph["context"]]
            for asked in get(paragraph, "qas", list, name):
                answers = get(asked, "answers", list, name)
                if asked.get("is_impossible") or not answers:
                    continue
                texts = tuple(get(answer, "text", str, name) for answer in answers)
                starts = [get(answer, "answer_start", int, name) for answer in answers]
                questions.append(
                    RulerQuestion(
                        text=get(asked, "question", str, name),
                        answers=texts,
                        gold=(gold,),
                        related=tuple(number for number in related if number != gold),
                        evidence=frozenset(
                            (gold, at, at + len(text))
                            for text, at in zip(texts, starts, strict=True)
                            if paragraph["context"].startswith(text, at)
                        ),
                    )
                )
    return questions, documents


def read_hotpotqa(content: Any, name: str) -> tuple[list[RulerQuestion], list[str]]:
    """HotpotQA, distractor setting: each question with its ten paragraphs; answers are in the supporting ones."""
    if not isinstance(content, list):
        raise HOTPOTQA.wrong(name, "not a list")
    paragraphs = [_paragraphs(row, name) for row in content]
    documents = sorted({text for of_row in paragraphs for _, text in of_row})
    number_of = {text: number for number, text in enumerate(documents)}
    questions = []
    for row, of_row in zip(content, paragraphs, strict=True):
        answer = HOTPOTQA.get(row, "answer", str, name)
        facts = {fact[0] for fact in HOTPOTQA.get(row, "supporting_facts", list, name) if _is_titled(fact)}
        sought = None if answer in ("yes", "no") else re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
        evidence = frozenset(
            (number_of[text], *found.span())
            for title, text in of_row
            if sought is not None and title in facts
            for found in sought.finditer(text)
        )
        gold = tuple(dict.fromkeys(number_of[text] for _, text in of_row))
        questions.append(RulerQuestion(HOTPOTQA.get(row, "question", str, name), (answer,), gold, (), evidence))
    return questions, documents


def _is_titled(fact: Any) -> bool:
    return isinstance(fact, list) and bool(fact) and isinstance(fact[0], str)


def _paragraphs(row: Any, name: str) -> list[tuple[str, str]]:
    try:
        context = HOTPOTQA.get(row, "context", list, name)
        return [(str(title), f"{title}\n{''.join(sentences)}") for title, sentences in context]
    except (TypeError, ValueError) as error:
        raise HOTPOTQA.wrong(name, "a context that is not pairs of a title and a list of sentences") from error
