"""HELMET's questions on long documents: NarrativeQA, and InfiniteBench's with a free answer and with four choices.

Prompts: ``load_narrativeqa`` and ``load_infbench`` in data.py of princeton-nlp/HELMET at 4526dfb, MIT; settings:
configs/longqa.yaml. Metrics: a judge's points for NarrativeQA (scripts/eval_gpt4_longqa.py), ROUGE-L for the questions
of InfiniteBench, exact match for its choices (scripts/collect_results.py). Data: NarrativeQA, Kočiský et al., arXiv
1712.07040, Apache-2.0; InfiniteBench, Zhang et al., arXiv 2402.13718, MIT. Known differences to data.py, of which the
first three hold for `longlens.tasks.helmet.summ` too:

- The text is truncated with the tokenizer of the model to the length asked for, where HELMET cuts it with Llama 2's to
  200 tokens less than length and answer leave, the same text for every model (``truncate_llama2``).
- HELMET has only documents of a least number of Llama-2 tokens, for which ``min_characters`` is there.
- Which documents come and which demonstrations is drawn otherwise: HELMET draws with the shuffle of datasets, for
  NarrativeQA's and Multi-LexSum's demonstrations without a seed, thus again in each run.
- The judge's prompt is ours unless the user gives HELMET's, see `longlens.tasks.helmet.judging`; a judge's points that
  cannot be make a sample unreadable.
- Without a judge NarrativeQA has ROUGE-L, which HELMET does not report.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from longlens.errors import UserError
from longlens.tasks import metrics
from longlens.tasks.base import Sample, check_least, draws
from longlens.tasks.data import DataFile, HubTask
from longlens.tasks.fitting import Draft, Plan, TokenCounter, Whole
from longlens.tasks.helmet.base import best_scores, split_prefix
from longlens.tasks.helmet.judging import HelmetJudged, last_object, number
from longlens.tasks.rows import LETTERS, other_letters

QA_SCORES = ("rougeL_f1", "f1", "exact_match", "substring_exact_match")
POINTS = 3  # eval_gpt4_longqa.py, judge_prompt: correctness is 0 to 3

NARRATIVEQA = DataFile(
    names=("narrativeqa_test.jsonl", "narrativeqa_test.parquet"),
    source="the Hub dataset deepmind/narrativeqa, split test (docs/tasks_helmet.md has the script that writes it)",
    schema="rows with document.text, question.text and answers[].text",
)
NARRATIVEQA_TRAIN = DataFile(
    names=("narrativeqa_train.jsonl", "narrativeqa_train.parquet"),
    source="the Hub dataset deepmind/narrativeqa, split train (docs/tasks_helmet.md has the script that writes it)",
    schema="rows with question.text and answers[].text",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LongDocument:
    """A row.

    Attributes:
        text: The document; empty if the row serves as a demonstration alone.
        question: What is asked; empty for summaries.
        answers: The right ones; the first is shown in a demonstration.
        metadata: What a sample says of it.
    """

    text: str
    question: str = ""
    answers: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


Documents = tuple[Sequence[LongDocument], dict[str, str]]
"""Rows, and what describes their file."""


@dataclass(frozen=True, kw_only=True)
class DocumentTask(HubTask):
    """A task on one long document: instruction, demonstrations, document, what is asked.

    Samples take the documents in an order that the seed gives; a document with several questions is there as often.

    Attributes:
        shots: Demonstrations, without their documents.
        min_characters: Shorter documents are left out. HELMET's least numbers of Llama-2 tokens, of some four
            characters each in English prose: 131,073 for NarrativeQA, 65,536 for the others, at every length.
        file: The documents.
        examples_file: What demonstrations are drawn from; the documents by default.
        instruction: What the prompt begins with.
        begins: Before the demonstrations.
        shown: One of them, of ``{question}`` and ``{answer}``.
        ends: After them.
        lead: Before the document.
        asks: After the document, of ``{question}``.
        prefix: Text before the answer.
    """

    name: str
    shots: int = 2  # longqa.yaml, summ.yaml: shots: 2
    min_characters: int = 0

    file: ClassVar[DataFile]
    examples_file: ClassVar[DataFile | None] = None
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
        check_least(self, shots=0, min_characters=0)

    def files(self, lengths: Sequence[int] = ()) -> tuple[DataFile, ...]:
        """The documents, and the demonstrations where they have a file of their own."""
        return (self.file, self.examples_file) if self.shots and self.examples_file is not None else (self.file,)

    @abstractmethod
    def read(self, row: Mapping[str, Any], place: str) -> LongDocument | None:
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

    def shown_answer(self, document: LongDocument) -> str:
        """What a demonstration answers."""
        return document.answers[0]

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """Takes the document whose turn it is, and draws the demonstrations."""
        document, described = self._document(seed, index)
        before = self.instruction + self._demonstrations(document, seed, index) + self.lead
        asked = self.asks.format(question=document.question)
        prompt, prefix = split_prefix(before + document.text + asked, self.prefix)
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

    def _document(self, seed: int, index: int) -> tuple[LongDocument, dict[str, str]]:
        documents, described = self.documents
        long = [document for document in documents if len(document.text) >= self.min_characters]
        least = f" of at least {self.min_characters:,} characters" if self.min_characters else ""
        self.check_index(index, len(long), described["file"], f"documents{least}")
        draws(self.name, seed, 0, "documents").shuffle(long)
        return long[index], described

    def _demonstrations(self, document: LongDocument, seed: int, index: int) -> str:
        if not self.shots:
            return ""
        rows, described = self.examples
        others = [one for one in rows if one is not document]
        if len(others) < self.shots:
            raise UserError(
                f"{self.name}: `shots={self.shots}`, but {described['file']} has {len(others)} rows to show: give "
                f"`shots={len(others)}` at most"
            )
        drawn = draws(self.name, seed, index, "demonstrations").sample(others, self.shots)
        texts = [self.shown.format(question=one.question, answer=self.shown_answer(one)) for one in drawn]
        return self.begins + "\n\n".join(texts) + self.ends


def infinitebench(name: str, schema: str) -> DataFile:
    """A file of InfiniteBench."""
    hub = f"xinrongzhang2022/InfiniteBench@{name}"
    return DataFile(names=(name,), source=f"the Hub dataset {hub.replace('@', ', file ')}", schema=schema, hub=hub)


@dataclass(frozen=True, kw_only=True)
class NarrativeQA(DocumentTask, HelmetJudged):
    """Questions on novels and film scripts."""

    name: str = "helmet_narrativeqa"

    category = "longqa"
    metric = "rougeL_f1"
    judged_metric = "judge"
    judge_tokens = 2048  # model_utils.py, OpenAIModel: generation_max_length, as eval_gpt4_longqa.py gives none
    max_new_tokens = 100  # longqa.yaml: generation_max_length, first value
    file = NARRATIVEQA
    examples_file = NARRATIVEQA_TRAIN
    instruction = (
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the question as "
        "concisely as you can, using a single phrase if possible.\n\n"
    )
    begins = "For example:\n\n"
    shown = "Question: {question}\nAnswer: {answer}"
    ends = "\n\nNow, use the following story to answer the question:\n\n"
    asks = "\n\nQuestion: {question}"
    prefix = "\nAnswer:"
    prompts = ("narrativeqa",)

    @cached_property
    def examples(self) -> Documents:
        """The training split."""
        file = NARRATIVEQA_TRAIN
        rows, described = file.rows(self.name, self.data_dir, self.revision)
        places = (f"{described['file']}, row {number}" for number in range(1, len(rows) + 1))
        return [_question(file, row, place, text="") for row, place in zip(rows, places, strict=True)], described

    def read(self, row: Mapping[str, Any], place: str) -> LongDocument:
        """A row of the test split."""
        text = self.file.get(self.file.get(row, "document", dict, place), "text", str, place)
        return _question(self.file, row, place, text)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """What HELMET computes without its judge, best of reply and parsed reply."""
        return best_scores(prediction, sample.answers, *QA_SCORES)

    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """One prompt: question, right answers as a Python list, and all of the reply in one line.

        HELMET leaves out what a chat model writes before ``Answer:``, if it writes that.
        """
        return [
            self.fill_prompt(
                "narrativeqa",
                question=sample.metadata["question"],
                correct_answers=list(sample.answers),
                parsed_output=metrics.parse_output(f"Answer:{prediction}".replace("\n", " ")),
            )
        ]

    def judged(self, sample: Sample, prediction: str, replies: Sequence[str]) -> dict[str, float]:
        """``judge = fluency * correctness / 3``, and its factors (correctness as a share of 3)."""
        (reply,) = replies
        found = last_object(reply)
        fluency, points = number(found, "fluency", 1), number(found, "correctness", POINTS)
        if fluency is None or points is None:
            return {}
        correctness = points / POINTS
        return {
            "judge": fluency * correctness,
            "judge_fluency": fluency,
            "judge_correctness": correctness,
        }


def _question(file: DataFile, row: Mapping[str, Any], place: str, text: str) -> LongDocument:
    answers = [file.get(answer, "text", str, place) for answer in file.get(row, "answers", list, place)]
    if not answers:
        raise file.wrong(place, "no answers")
    asked = file.get(file.get(row, "question", dict, place), "text", str, place)
    return LongDocument(text=text, question=asked, answers=answers)


@dataclass(frozen=True, kw_only=True)
class InfiniteBenchTask(DocumentTask):
    """What InfiniteBench's tasks share."""

    begins = "For example:\n\n"
    ends = "\n\nNow, read the following story:\n\n"

    def row(self, row: Mapping[str, Any], place: str) -> tuple[str, str, list[str], dict[str, Any]]:
        """Text, question, answers and what a sample says of it."""
        get = self.file.get
        answers = row.get("answer")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise self.file.wrong(place, "no list of texts 'answer'")
        said = {"document": get(row, "id", int, place)}
        return get(row, "context", str, place), get(row, "input", str, place), answers, said


@dataclass(frozen=True, kw_only=True)
class InfiniteBenchQA(InfiniteBenchTask):
    """Questions on novels whose characters have other names than in print."""

    name: str = "helmet_infbench_qa"

    category = "longqa"
    metric = "rougeL_f1"
    max_new_tokens = 10  # longqa.yaml: generation_max_length, second value
    file = infinitebench("longbook_qa_eng.jsonl", "rows with id, context, input and a list answer")
    instruction = (
        "You are given a story and a question. Answer the question as concisely as you can, using a single phrase if "
        "possible.\n\n"
    )
    shown = "[story text]\nQuestion: {question}\nAnswer: {answer}"
    asks = "\n\nQuestion: {question}"
    prefix = "\n\nAnswer:"

    def read(self, row: Mapping[str, Any], place: str) -> LongDocument:
        """A row."""
        text, question, answers, said = self.row(row, place)
        return LongDocument(text=text, question=question, answers=answers, metadata=said)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """HELMET's scores, best of reply and parsed reply."""
        return best_scores(prediction, sample.answers, *QA_SCORES)


@dataclass(frozen=True, kw_only=True)
class InfiniteBenchChoice(InfiniteBenchQA):
    """Questions on novels with four answers to choose from."""

    name: str = "helmet_infbench_choice"

    metric = "exact_match"
    max_new_tokens = 10  # longqa.yaml: generation_max_length, third value
    file = infinitebench("longbook_choice_eng.jsonl", "rows with id, context, input, a list answer and four options")
    instruction = (
        "You are given a story and a question with multiple choices. Choose the best answer from the options provided. "
        "Only one of the following options is correct, output the answer using one single letter (A, B, C, or D). "
        "Don't say anything else.\n\n"
    )

    def read(self, row: Mapping[str, Any], place: str) -> LongDocument:
        """A row; the question has the options after it, the answers are the letter and the option with its letter."""
        text, question, answers, said = self.row(row, place)
        options = self.file.get(row, "options", list, place)
        if len(options) != len(LETTERS):
            raise self.file.wrong(place, f"{len(options)} options")
        if answers[0] not in options:
            raise self.file.wrong(place, "an answer that is none of the options")
        letter = LETTERS[options.index(answers[0])]
        listed = "\n".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=True))
        return LongDocument(
            text=text,
            question=f"{question}\nOptions:\n{listed}",
            answers=(letter, f"{letter}. {answers[0]}"),
            metadata={**said, "distractors": other_letters(letter)},
        )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """1 where reply or parsed reply is letter or option, or the reply has the option with its letter in it.

        Oddity: the letter A is an article, which is left out before texts are compared, so that an empty reply is right
        where A is.

        Source: HELMET ``data.py``, `choice_post_process`.
        """
        exact = best_scores(prediction, sample.answers, "exact_match")["exact_match"]
        return {"exact_match": max(exact, float(sample.answers[1].lower() in prediction.lower()))}

    def target(self, sample: Sample) -> str:
        """The letter."""
        return f" {sample.answers[0]}"


TASKS = {
    "helmet_narrativeqa": NarrativeQA,
    "helmet_infbench_qa": InfiniteBenchQA,
    "helmet_infbench_choice": InfiniteBenchChoice,
}
