"""Builds HELMET's summarization tasks: of novels (InfiniteBench) and of the documents of a lawsuit (Multi-LexSum).

Prompts: ``load_infbench`` and ``load_multi_lexsum`` in data.py of princeton-nlp/HELMET at 4526dfb, MIT; settings:
configs/summ.yaml. Metric: three questions to a judge (scripts/eval_gpt4_summ.py). Data: InfiniteBench, Zhang et al.,
arXiv 2402.13718, MIT; Multi-LexSum, Shen et al., arXiv 2206.10883, ODC-By; the key points for the judge are HELMET's.
Known differences, in addition to those of `longlens.tasks.helmet.longqa`: the judge's prompts are those of longlens
unless the user passes HELMET's, see `longlens.tasks.helmet.judging`; if a judge's counts are out of range, the sample
counts as unreadable; the judge sees the reply without the prefix in the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from longlens.errors import UserError
from longlens.tasks.base import Sample
from longlens.tasks.data import DataFile
from longlens.tasks.helmet.base import best_scores
from longlens.tasks.helmet.judging import HelmetJudged, last_object, number
from longlens.tasks.helmet.longqa import Documents, DocumentTask, InfiniteBenchTask, LongDocument, infinitebench

SCORES = ("rougeL_f1", "f1")
_HELMET_DATA = "data.tar.gz of the Hub dataset princeton-nlp/HELMET, file"
BOOK_KEYPOINTS = DataFile(
    names=("longbook_sum_eng_keypoints.jsonl", "infbench/longbook_sum_eng_keypoints.jsonl"),
    source=f"{_HELMET_DATA} data/infbench/longbook_sum_eng_keypoints.jsonl",
    schema="rows with id and a list keypoints",
)
CASE_KEYPOINTS = DataFile(
    names=("multi_lexsum_val.jsonl", "multi_lexsum/multi_lexsum_val.jsonl"),
    source=f"{_HELMET_DATA} data/multi_lexsum/multi_lexsum_val.jsonl",
    schema="rows with id and a list summary/short_keypoints",
)
_LEXSUM = (
    "the Hub dataset allenai/multi_lexsum v20230518, split {} (docs/tasks_helmet.md has the script that writes it)"
)
CASES = DataFile(
    names=("multi_lexsum_validation.jsonl", "multi_lexsum_validation.parquet"),
    source=_LEXSUM.format("validation"),
    schema="rows with id, a list sources, summary/short and summary/long",
)
CASES_TRAIN = DataFile(
    names=("multi_lexsum_train.jsonl", "multi_lexsum_train.parquet"),
    source=_LEXSUM.format("train"),
    schema="rows with summary/short",
)


class SummaryTask(HelmetJudged):
    """Scoring of a summary.

    Attributes:
        prompts: Names of the prompts for fluency, recall and precision.
        keypoints: File of the key points that a summary should contain.
        keypoints_field: Name of their field in the file.
        parsed_after: The prefix that HELMET searches in a reply.
    """

    name: str
    data_dir: Any
    prompts: ClassVar[tuple[str, str, str]]
    keypoints: ClassVar[DataFile]
    keypoints_field: ClassVar[str]
    parsed_after: ClassVar[str]

    category = "summ"
    metric = "rougeL_f1"
    judged_metric = "judge"
    judge_tokens = 4096  # eval_gpt4_summ.py: generation_max_length=4096

    def expert(self, sample: Sample) -> str:
        """The reference summary for precision."""
        return sample.answers[0]

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Scores that HELMET computes without its judge, best of reply and parsed reply; it does not report them."""
        return best_scores(prediction, sample.answers, *SCORES, prefix=self.parsed_after)

    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """Three prompts: fluency, key points in the summary, and its sentences that the expert's summary supports.

        Raises:
            UserError: The file of key points is missing or invalid, or has none for this document; or the user's
                prompts are missing or invalid.
        """
        listed = "\n".join(f"{number}. {point}" for number, point in enumerate(self._points(sample), start=1))
        summary = prediction.strip()
        fluency, recall, precision = self.prompts
        return [
            self.fill_prompt(fluency, text=summary),
            self.fill_prompt(recall, keypoints=listed, summary=summary),
            self.fill_prompt(precision, expert_summary=self.expert(sample), summary=summary),
        ]

    def judged(self, sample: Sample, prediction: str, replies: Sequence[str]) -> dict[str, float]:
        """``judge = fluency * 2 * recall * precision / (recall + precision)``, and its factors.

        recall is the fraction of the key points that are found. precision is the fraction of the sentences that the
        expert's summary supports. Each is 0 if there are none.
        """
        fluent, recalled, precise = (last_object(reply, fenced=True) for reply in replies)
        points = len(self._points(sample))
        fluency, found = number(fluent, "fluency", 1), number(recalled, "recall", points)
        sentences = number(precise, "sentence_count", math.inf)
        supported = None if sentences is None else number(precise, "precision", sentences)
        if fluency is None or found is None or sentences is None or supported is None:
            return {}
        recall = found / points if points else 0.0
        precision = supported / sentences if sentences else 0.0
        both = recall + precision
        return {
            "judge": fluency * 2 * recall * precision / both if both else 0.0,
            "judge_fluency": fluency,
            "judge_recall": recall,
            "judge_precision": precision,
        }

    def _points(self, sample: Sample) -> list[str]:
        document = sample.metadata["document"]
        points, name = self._all_points
        if document not in points:
            raise UserError(
                f"{self.name}: {name} has no key points for document {document!r}: use the file of the same dataset"
            )
        return points[document]

    @cached_property
    def _all_points(self) -> tuple[dict[Any, list[str]], str]:
        rows, described = self.keypoints.rows(self.name, self.data_dir)
        name = described["file"]
        points = {}
        for line, row in enumerate(rows, start=1):
            place = f"{name}, row {line}"
            listed = self.keypoints.get(row, self.keypoints_field, list, place)
            if not isinstance(row.get("id"), (int, str)):
                raise self.keypoints.wrong(place, "no number or string 'id'")
            points[row["id"]] = listed
        return points, name


@dataclass(frozen=True, kw_only=True)
class InfiniteBenchSummary(InfiniteBenchTask, SummaryTask):
    """Summaries of novels whose characters are renamed."""

    name: str = "helmet_infbench_sum"

    max_new_tokens = 1200  # summ.yaml: generation_max_length, first value
    file = infinitebench("longbook_sum_eng.jsonl", "rows with id, context, input and a list answer")
    instruction = (
        "You are given a book and you are tasked to summarize it. Write a summary of about 1000 to 1200 words. Only "
        "write about the plot and characters of the story. Do not discuss the themes or background of the book. Do not "
        "provide any analysis or commentary.\n\n"
    )
    shown = "[story text]\nSummary: {answer}"
    asks = "\n\nNow summarize the book."
    prefix = "\n\nSummary:"
    prompts = ("infbench_sum_fluency", "infbench_sum_recall", "infbench_sum_precision")
    keypoints = BOOK_KEYPOINTS
    keypoints_field = "keypoints"
    parsed_after = "Answer:"  # data.py, load_infbench: default_post_process, whose prefix is that of questions

    def read(self, row: Mapping[str, Any], place: str) -> LongDocument:
        """Parses a row."""
        text, _, answers, said = self.row(row, place)
        return LongDocument(text=text, answers=answers, metadata=said)

    def shown_answer(self, document: LongDocument) -> str:
        """The summary without surrounding whitespace."""
        return document.answers[0].strip()


@dataclass(frozen=True, kw_only=True)
class MultiLexSum(DocumentTask, SummaryTask):
    """Short summaries of civil rights lawsuits from all their documents."""

    name: str = "helmet_multi_lexsum"

    max_new_tokens = 400  # summ.yaml: generation_max_length, second value
    file = CASES
    examples_file = CASES_TRAIN
    instruction = (
        "You are given the legal documents in a civil rights lawsuit, and you are tasked to summarize the case. Write "
        "a concise summary of one paragraph (200 to 250 words). The summary should contain a short description of the "
        "background, the parties involved, and the outcomes of the case.\n\n"
    )
    begins = "Example summaries:\n\n"
    shown = "Summary: {answer}"
    ends = "\n\nNow, write a summary of the following legal documents.\n"
    lead = "Legal documents:\n"
    asks = "\n\nNow please summarize the case."
    prefix = "\n\nSummary:"
    prompts = ("multi_lexsum_fluency", "multi_lexsum_recall", "multi_lexsum_precision")
    keypoints = CASE_KEYPOINTS
    keypoints_field = "summary/short_keypoints"
    parsed_after = "Summary:"

    @cached_property
    def examples(self) -> Documents:
        """The training split."""
        rows, described = CASES_TRAIN.rows(self.name, self.data_dir, self.revision)
        places = (f"{described['file']}, row {line}" for line in range(1, len(rows) + 1))
        short = [_short(CASES_TRAIN, row, place) for row, place in zip(rows, places, strict=True)]
        return [LongDocument(text="", answers=[summary]) for summary in short if summary is not None], described

    def read(self, row: Mapping[str, Any], place: str) -> LongDocument | None:
        """Parses a row of the validation split; rows without a short summary are skipped."""
        short = _short(self.file, row, place)
        if short is None:
            return None
        get = self.file.get
        sources = get(row, "sources", list, place)
        if not all(isinstance(source, str) for source in sources):
            raise self.file.wrong(place, "sources that are not strings")
        said = {"document": get(row, "id", str, place), "long_summary": get(row, "summary/long", str, place)}
        return LongDocument(text="\n\n".join(sources), answers=[short], metadata=said)

    def expert(self, sample: Sample) -> str:
        """The long summary."""
        return str(sample.metadata["long_summary"])


def _short(file: DataFile, row: Mapping[str, Any], place: str) -> str | None:
    if "summary/short" in row and row["summary/short"] is None:
        return None
    short: str = file.get(row, "summary/short", str, place)
    return short


TASKS = {"helmet_infbench_sum": InfiniteBenchSummary, "helmet_multi_lexsum": MultiLexSum}
