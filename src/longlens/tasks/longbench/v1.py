"""Builds LongBench v1 and LongBench-E: 21 datasets in English, Chinese and code, 13 of them also with even lengths.

Paper: Bai et al., LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding, arXiv 2308.14508.
Prompts, settings and metrics: `longlens.tasks.longbench.sets`, from THUDM/LongBench at 2e00731, MIT. Data: files of
the user, ``data.zip`` of the Hub dataset THUDM/LongBench, unpacked; its datasets have their own licenses. Its files are
not available one by one, and Parquet copies of them by others have other columns.

Sample i is row i of the file; only the wrong answers (distractors) are random. Known differences:

- A prompt does not end in whitespace here; upstream's does for the datasets of code, for passage_count and
  passage_retrieval_en, and if a row's input does. `LongBench.target` restores that whitespace.
- ``length`` is the budget for prompt and answer; upstream's max_length is for the prompt only (its "31500" for a model
  of 32k is a length of 31500 + ``max_new_tokens``). Here the middle is removed from the text before the answer prefix;
  upstream splits prompt and prefix together into halves, so that the cut differs by a few tokens.
- samsum ends at a line end, as upstream, whose first token however cannot be a line end.
- Classes are those of the row; upstream uses those of the file's last row, which are the same.
- A missing score never changes an average silently: it is an error, or the average is None and the gap is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from longlens.errors import UserError
from longlens.tasks.base import Sample, Task, complete_mean, draws
from longlens.tasks.data import DataFile
from longlens.tasks.fitting import Draft
from longlens.tasks.longbench.sets import CHINESE, DOMAINS, ENGLISH, METRICS, PROGRAMS, SETS, LongBenchSet
from longlens.tasks.rows import DataRow, SubsetTask
from longlens.tasks.synthetic import distractors

NAME = "longbench_"
NAME_E = "longbench_e_"
# Paper, table 2: "code tasks are included in both languages"
PARTS_E = {"en": (ENGLISH, PROGRAMS)}
PARTS = PARTS_E | {"zh": (CHINESE, PROGRAMS), "all": (ENGLISH, CHINESE, PROGRAMS)}
"""Averages by name, each with its languages."""
# eval.py, scorer_e: "if length < 4000 … elif length < 8000 … else"; words, or characters of Chinese
BUCKETS: dict[str, float] = {"0-4k": 4000, "4-8k": 8000, "8k+": float("inf")}
"""LongBench-E's buckets, each with its upper bound (exclusive) on the length field of a row."""


@dataclass(frozen=True, kw_only=True)
class LongBench(SubsetTask):
    """A dataset of LongBench v1.

    Attributes:
        dataset: A key of `SETS`.
    """

    sets = SETS
    suite = "longbench"  # overlong is "middle": pred.py, get_pred: "we suggest truncate in the middle"

    @property
    def facts(self) -> LongBenchSet:
        """LongBench's definition of the dataset."""
        return SETS[self.dataset]

    @property
    def default_samples(self) -> int:
        """Number of rows of the dataset."""
        return self.facts.samples

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return self.dataset

    @cached_property
    def file(self) -> DataFile:
        """The file of the set."""
        classes = ", all_classes (a list of strings)" if self.metric == "classification" else ""
        return DataFile(
            names=(f"data/{self.stem}.jsonl", f"{self.stem}.jsonl", f"{self.stem}.parquet"),
            source="data.zip of the Hub dataset THUDM/LongBench, unpacked",
            schema=f"one row per question, with input, context and _id (strings), answers (a list of strings){classes} "
            "and length (a number)",
        )

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The draft of the row's prompt."""
        context, answers = self.text(row, "context"), self.texts(row, "answers")
        words = self.file.get(row.values, "length", int, row.place)
        metadata = {
            "row_id": self.text(row, "_id"),
            "row_length": words,
            "bucket": _bucket_of(words),
            "language": self.facts.language,
        }
        metadata |= self._others(row, context, answers, key)
        return self.fill(metadata, answers, context=context, input=self.text(row, "input"))

    def _others(self, row: DataRow, context: str, answers: Sequence[str], key: tuple[int, int]) -> dict[str, Any]:
        """The classes, and wrong answers of the right kind, for datasets that have any."""
        rng = draws(self.name, *key, "distractors")
        if self.metric == "classification":
            classes = self.texts(row, "all_classes")
            return {"all_classes": classes, **distractors(classes, answers, rng)}
        if self.facts.inside:
            return distractors(re.findall(self.facts.inside, context), answers, rng)
        return {}

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The dataset's metric, best over the answers, on the prediction's first line if LongBench uses only that."""
        if self.facts.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        compare, classes = METRICS[self.metric], sample.metadata.get("all_classes", ())
        return {self.metric: max(compare(prediction, answer, classes) for answer in sample.answers)}

    def target(self, sample: Sample) -> str | None:
        """The only answer, after upstream's whitespace or a space; without a space before Chinese."""
        if self.facts.language == CHINESE and not sample.metadata["white_space"]:
            return sample.answers[0] if len(sample.answers) == 1 else None
        return super().target(sample)

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The mean in percent, rounded to two digits as in LongBench.

        Raises:
            UserError: The list of scores is empty.
        """
        return {self.metric: percent([row[self.metric] for row in scores])}


@dataclass(frozen=True, kw_only=True)
class LongBenchE(LongBench):
    """A dataset of LongBench-E: rows of all lengths, to be aggregated with `bucket_means`."""

    suite = "longbench_e"

    @property
    def default_samples(self) -> int:
        """Number of rows of the dataset."""
        return self.facts.samples_e

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return f"{self.dataset}_e"


TASKS: dict[str, Callable[..., Task]] = {
    **{NAME + dataset: partial(LongBench, dataset=dataset) for dataset in SETS},
    **{NAME_E + dataset: partial(LongBenchE, dataset=dataset) for dataset, facts in SETS.items() if facts.samples_e},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LongBenchSummary:
    """Averages in percent; None if a dataset is missing.

    Attributes:
        overall: ``en``, ``zh`` and ``all`` (for LongBench-E only ``en``) -> mean of its domains' values in `domains`.
        domains: The same keys -> domain -> mean of its datasets. Code counts in both languages.
        gaps: Tasks without a score.
    """

    overall: dict[str, float | None]
    domains: dict[str, dict[str, float | None]]
    gaps: list[str]


def _bucket_of(length: int) -> str:
    """The bucket of a row, by its ``length``."""
    return next(name for name, end in BUCKETS.items() if length < end)


def percent(scores: Sequence[float]) -> float:
    """``round(100 * sum(scores) / len(scores), 2)``, as in ``eval.py`` for the score of a dataset.

    Raises:
        UserError: The list of scores is empty.
    """
    if not scores:
        raise UserError("no scores to aggregate; pass at least one")
    return round(100 * sum(scores) / len(scores), 2)


def bucket_means(metadata: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float | None]:
    """`percent` of each bucket's scores, None if a bucket has no scores (NaN in ``eval.py``).

    Args:
        metadata: Metadata of the samples, with their ``bucket``.
        scores: Scores of the same samples, from 0 to 1.

    Raises:
        UserError: The numbers of samples and scores differ, or are 0.
    """
    groups = group_scores([str(row["bucket"]) for row in metadata], scores)
    return {name: percent(groups[name]) if name in groups else None for name in BUCKETS}


def summarize(scores: Mapping[str, float | None], *, allow_gaps: bool = False) -> LongBenchSummary:
    """LongBench's averages: a domain is the mean of its datasets, a language the mean of its domains, without weights.

    Paper (Bai et al., arXiv 2308.14508), table 2: the macro-average over the task categories, for English, Chinese and
    all datasets.

    Args:
        scores: Task, such as ``longbench_hotpotqa`` -> score in percent; None is a gap.
        allow_gaps: Whether datasets may be missing; the averages that depend on them are then None.

    Raises:
        UserError: A dataset is missing, or a name is not a task of LongBench v1.
    """
    return _averages(scores, {NAME + name: name for name in SETS}, PARTS, allow_gaps)


def summarize_e(
    scores: Mapping[str, Mapping[str, float | None]], *, allow_gaps: bool = False
) -> dict[str, LongBenchSummary]:
    """LongBench-E's averages, as in `summarize`, for each of `BUCKETS`; all of its datasets are English or code.

    Args:
        scores: Task, such as ``longbench_e_hotpotqa`` -> bucket -> score in percent, as returned by `bucket_means`.
        allow_gaps: Whether datasets, or buckets of datasets, may be missing.

    Raises:
        UserError: A dataset or a bucket is missing, or a name is not a task of LongBench-E.
    """
    sets = {NAME_E + name: name for name, facts in SETS.items() if facts.samples_e}
    return {
        bucket: _averages(
            {task: row.get(bucket) for task, row in scores.items()}, sets, PARTS_E, allow_gaps, f" in bucket {bucket}"
        )
        for bucket in BUCKETS
    }


def group_scores(names: Sequence[str], scores: Sequence[float]) -> dict[str, list[float]]:
    """Groups scores by name, in order.

    Raises:
        UserError: The numbers of names and scores differ, or are 0.
    """
    if len(names) != len(scores) or not scores:
        raise UserError(f"{len(names)} samples and {len(scores)} scores; expected as many of each, at least one")
    groups: dict[str, list[float]] = {}
    for name, score in zip(names, scores, strict=True):
        groups.setdefault(name, []).append(score)
    return groups


def _averages(
    scores: Mapping[str, float | None],
    sets: Mapping[str, str],
    parts: Mapping[str, tuple[str, ...]],
    allow_gaps: bool,
    where: str = "",
) -> LongBenchSummary:
    unknown = [task for task in scores if task not in sets]
    if unknown:
        raise UserError(f"unknown datasets {', '.join(unknown)}; expected {', '.join(sets)}")
    gaps = [task for task in sets if scores.get(task) is None]
    if gaps and not allow_gaps:
        raise UserError(
            f"no score of {', '.join(gaps)}{where}: an average without them is not LongBench's; run them, or pass "
            "`allow_gaps=True` for the averages that do not need them"
        )
    domains = {}
    for part, languages in parts.items():
        inside = {task: SETS[name] for task, name in sets.items() if SETS[name].language in languages}
        domains[part] = {
            domain: complete_mean(scores.get(task) for task, facts in inside.items() if facts.category == domain)
            for domain in DOMAINS
        }
    return LongBenchSummary(
        overall={part: complete_mean(row.values()) for part, row in domains.items()}, domains=domains, gaps=gaps
    )
