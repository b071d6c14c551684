"""HELMET's questions on long documents: NarrativeQA, and InfiniteBench's with a free answer and with four choices.

Prompts: ``load_narrativeqa`` and ``load_infbench`` in data.py of princeton-nlp/HELMET at 4526dfb, MIT; settings:
configs/longqa.yaml. Metrics: a judge's points for NarrativeQA (scripts/eval_gpt4_longqa.py), ROUGE-L for the questions
of InfiniteBench, exact match for its choices (scripts/collect_results.py). Data: NarrativeQA, Kočiský et al., arXiv
1712.07040, Apache-2.0; InfiniteBench, Zhang et al., arXiv 2402.13718, MIT. Known differences, beside those of
`longlens.tasks.helmet.documents`: the judge's prompt is ours unless the user gives HELMET's, see
`longlens.tasks.helmet.judging`; without a judge NarrativeQA has ROUGE-L, which HELMET does not report; a judge's points
that cannot be make a sample unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from longlens.tasks.base import Sample
from longlens.tasks.data import DataFile
from longlens.tasks.helmet.documents import Document, Documents, DocumentTask
from longlens.tasks.helmet.judging import HelmetJudged, last_object, number
from longlens.tasks.helmet.replies import best_scores

QA_SCORES = ("rougeL_f1", "f1", "exact_match", "substring_exact_match")
LETTERS = ("A", "B", "C", "D")
POINTS = 3  # eval_gpt4_longqa.py, judge_prompt: correctness is 0 to 3

NARRATIVEQA = DataFile(
    names=("narrativeqa_test.jsonl", "narrativeqa_test.parquet"),
    source="the hub's deepmind/narrativeqa, split test (docs/tasks_helmet.md has the lines that write it)",
    schema="rows with document.text, question.text and answers[].text",
)
NARRATIVEQA_TRAIN = DataFile(
    names=("narrativeqa_train.jsonl", "narrativeqa_train.parquet"),
    source="the hub's deepmind/narrativeqa, split train (docs/tasks_helmet.md has the lines that write it)",
    schema="rows with question.text and answers[].text",
)


def infinitebench(name: str, schema: str) -> DataFile:
    """A file of InfiniteBench."""
    hub = f"xinrongzhang2022/InfiniteBench@{name}"
    return DataFile(names=(name,), source=f"the hub's {hub.replace('@', ', file ')}", schema=schema, hub=hub)


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
        return [_asked(file, row, place, text="") for row, place in zip(rows, places, strict=True)], described

    def read(self, row: Mapping[str, Any], place: str) -> Document:
        """A row of the test split."""
        text = self.file.get(self.file.get(row, "document", dict, place), "text", str, place)
        return _asked(self.file, row, place, text)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """What HELMET computes without its judge, best of reply and parsed reply."""
        return best_scores(prediction, sample.answers, *QA_SCORES)

    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """One prompt: question, right answers as a Python list, and all of the reply in one line.

        HELMET leaves out what a chat model writes before ``Answer:``, if it writes that.
        """
        from longlens.tasks import metrics

        return [
            self.asked(
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


def _asked(file: DataFile, row: Mapping[str, Any], place: str, text: str) -> Document:
    answers = [file.get(answer, "text", str, place) for answer in file.get(row, "answers", list, place)]
    if not answers:
        raise file.wrong(place, "no answers")
    asked = file.get(file.get(row, "question", dict, place), "text", str, place)
    return Document(text=text, question=asked, answers=answers)


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

    def read(self, row: Mapping[str, Any], place: str) -> Document:
        """A row."""
        text, question, answers, said = self.row(row, place)
        return Document(text=text, question=question, answers=answers, metadata=said)

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

    def read(self, row: Mapping[str, Any], place: str) -> Document:
        """A row; the question has the options after it, the answers are the letter and the option with its letter."""
        text, question, answers, said = self.row(row, place)
        options = self.file.get(row, "options", list, place)
        if len(options) != len(LETTERS):
            raise self.file.wrong(place, f"{len(options)} options")
        if answers[0] not in options:
            raise self.file.wrong(place, "an answer that is none of the options")
        letter = LETTERS[options.index(answers[0])]
        listed = "\n".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=True))
        return Document(
            text=text,
            question=f"{question}\nOptions:\n{listed}",
            answers=(letter, f"{letter}. {answers[0]}"),
            metadata={**said, "distractors": [other for other in LETTERS if other != letter]},
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
