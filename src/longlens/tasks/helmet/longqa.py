"""Builds HELMET's QA on long documents: NarrativeQA, and InfiniteBench's with a free answer and with four choices.

Prompts: ``load_narrativeqa`` and ``load_infbench`` in data.py of princeton-nlp/HELMET at 4526dfb, MIT; settings:
configs/longqa.yaml. Metrics: a judge's points for NarrativeQA (scripts/eval_gpt4_longqa.py), ROUGE-L for the questions
of InfiniteBench, exact match for its choices (scripts/collect_results.py). Data: NarrativeQA, Kočiský et al., arXiv
1712.07040, Apache-2.0; InfiniteBench, Zhang et al., arXiv 2402.13718, MIT. Known differences from data.py, of which the
first three also apply to `longlens.tasks.helmet.summ`:

- The text is truncated with the model's tokenizer to the requested length. HELMET truncates it with Llama 2's tokenizer
  to 200 tokens less than length and answer leave, to the same text for every model (``truncate_llama2``).
- HELMET uses only documents with a minimum number of Llama-2 tokens; use ``min_characters`` for this.
- The random order of documents and choice of demonstrations differ: HELMET draws with the shuffle of datasets, for
  demonstrations of NarrativeQA and Multi-LexSum without a seed, thus differently in each run.
- The judge's prompt is that of longlens unless the user passes HELMET's, see `longlens.tasks.helmet.judging`. If the
  judge's points are out of range, the sample counts as unreadable.
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
        text: The document; empty if the row is used only as a demonstration.
        question: The question; empty for summaries.
        answers: The right answers; a demonstration shows the first one.
        metadata: Metadata of the sample.
    """

    text: str
    question: str = ""
    answers: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


Documents = tuple[Sequence[LongDocument], dict[str, str]]
"""Rows, and the description of their file."""


@dataclass(frozen=True, kw_only=True)
class DocumentTask(HubTask):
    """A task on one long document: instruction, demonstrations, document, question.

    Samples use the documents in an order that depends on the seed. A document with several questions occurs once for
    each of them.

    Attributes:
        shots: Number of demonstrations, which are shown without their documents.
        min_characters: Shorter documents are skipped. HELMET's minimums are in Llama-2 tokens, of about four characters
            each in English prose: 131,073 for NarrativeQA, 65,536 for the others, at every length.
        file: File of the documents.
        examples_file: File from which demonstrations are drawn; that of the documents by default.
        instruction: Beginning of the prompt.
        begins: Text before the demonstrations.
        shown: Template of a demonstration, with ``{question}`` and ``{answer}``.
        ends: Text after the demonstrations.
        lead: Text before the document.
        asks: Template after the document, with ``{question}``.
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
        """The files of the documents and, if they are separate, of the demonstrations."""
        return (self.file, self.examples_file) if self.shots and self.examples_file is not None else (self.file,)

    @abstractmethod
    def read(self, row: Mapping[str, Any], place: str) -> LongDocument | None:
        """Parses and checks a row; None for a row that is skipped."""

    @cached_property
    def documents(self) -> Documents:
        """All rows that are not skipped.

        Raises:
            UserError: The file is missing, or has another schema.
        """
        rows, described = self.file.rows(self.name, self.data_dir, self.revision)
        places = (f"{described['file']}, row {number}" for number in range(1, len(rows) + 1))
        read = [self.read(row, place) for row, place in zip(rows, places, strict=True)]
        return [document for document in read if document is not None], described

    @cached_property
    def examples(self) -> Documents:
        """Rows from which demonstrations are drawn: the other documents, unless a task has a file for them."""
        return self.documents

    def shown_answer(self, document: LongDocument) -> str:
        """The answer of a demonstration."""
        return document.answers[0]

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A fixed plan of the document with this index, with random demonstrations."""
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
                f"{self.name}: `shots={self.shots}`, but {described['file']} has {len(others)} rows to show: pass "
                f"`shots={len(others)}` or less"
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
        """Parses a row of the test split."""
        text = self.file.get(self.file.get(row, "document", dict, place), "text", str, place)
        return _question(self.file, row, place, text)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Scores that HELMET computes without its judge, best of reply and parsed reply."""
        return best_scores(prediction, sample.answers, *QA_SCORES)

    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """One prompt: question, right answers as a Python list, and the whole reply in one line.

        As in HELMET, text of a chat model before ``Answer:`` is removed if the reply contains that.
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
        """``judge = fluency * correctness / 3``, and its factors (correctness as a fraction of 3)."""
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
    """Base class of InfiniteBench's tasks in HELMET."""

    begins = "For example:\n\n"
    ends = "\n\nNow, read the following story:\n\n"

    def row(self, row: Mapping[str, Any], place: str) -> tuple[str, str, list[str], dict[str, Any]]:
        """Text, question, answers and the sample's metadata."""
        get = self.file.get
        answers = row.get("answer")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise self.file.wrong(place, "no list of strings 'answer'")
        said = {"document": get(row, "id", int, place)}
        return get(row, "context", str, place), get(row, "input", str, place), answers, said


@dataclass(frozen=True, kw_only=True)
class InfiniteBenchQA(InfiniteBenchTask):
    """Questions on novels whose characters are renamed."""

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
        """Parses a row."""
        text, question, answers, said = self.row(row, place)
        return LongDocument(text=text, question=question, answers=answers, metadata=said)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """HELMET's scores, best of reply and parsed reply."""
        return best_scores(prediction, sample.answers, *QA_SCORES)


@dataclass(frozen=True, kw_only=True)
class InfiniteBenchChoice(InfiniteBenchQA):
    """Questions on novels with four choices."""

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
        """Parses a row: the options are part of the question, the answers are the letter and the option with it."""
        text, question, answers, said = self.row(row, place)
        options = self.file.get(row, "options", list, place)
        if len(options) != len(LETTERS):
            raise self.file.wrong(place, f"{len(options)} options")
        if answers[0] not in options:
            raise self.file.wrong(place, "an answer that is not one of the options")
        letter = LETTERS[options.index(answers[0])]
        listed = "\n".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=True))
        return LongDocument(
            text=text,
            question=f"{question}\nOptions:\n{listed}",
            answers=(letter, f"{letter}. {answers[0]}"),
            metadata={**said, "distractors": other_letters(letter)},
        )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """1 if reply or parsed reply equals the letter or the option, or the reply contains the option with its letter.

        Oddity: the letter A is also an article, which is removed before texts are compared, so that an empty reply is
        right if A is.

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
