"""LongBench v1 and LongBench-E: 21 sets in English, Chinese and code, 13 of them again with lengths spread evenly.

Paper: Bai et al., LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding, arXiv 2308.14508.
Prompts, settings and metrics: `longlens.tasks.longbench.sets`, from THUDM/LongBench at 2e00731, MIT. Data: files of
the user, ``data.zip`` of the Hub dataset THUDM/LongBench, unpacked; its sets have licenses of their own. It has
no files that could be had one by one, and the Parquet copies that others made of them have other columns.

Sample i is row i of the file; nothing is drawn but the wrong answers to choose from. Known differences:

- A prompt does not end in whitespace here; upstream's does for the sets of code, passage_count,
  passage_retrieval_en and where a row's input does. `LongBench.target` gives that whitespace back.
- ``length`` is the budget for prompt and answer; upstream's max_length is for the prompt alone (its "31500" for a model
  of 32k is a length of 31500 + ``max_new_tokens``). The middle is removed from what comes before the answer prefix;
  upstream halves prompt and prefix together, so that the cut is a few tokens elsewhere.
- samsum ends at a line end, as upstream, whose first token however cannot be one.
- Classes are those of the row; upstream takes those of the file's last row, which are the same.
- Nothing that is missing changes an average silently: it is an error, or the average is None and the gap is named.
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
"""The averages, and which sets each is over, by language."""
# eval.py, scorer_e: "if length < 4000 … elif length < 8000 … else"; words, or characters of Chinese
BUCKETS: dict[str, float] = {"0-4k": 4000, "4-8k": 8000, "8k+": float("inf")}
"""LongBench-E's buckets, and below which length of the row's data each ends."""


@dataclass(frozen=True, kw_only=True)
class LongBench(SubsetTask):
    """A set of LongBench v1.

    Attributes:
        dataset: A key of `SETS`.
    """

    sets = SETS
    suite = "longbench"  # overlong is "middle": pred.py, get_pred: "we suggest truncate in the middle"

    @property
    def facts(self) -> LongBenchSet:
        """What LongBench says of the set."""
        return SETS[self.dataset]

    @property
    def default_samples(self) -> int:
        """All of them."""
        return self.facts.samples

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return self.dataset

    @cached_property
    def file(self) -> DataFile:
        """The file of the set."""
        classes = ", all_classes (a list of texts)" if self.metric == "classification" else ""
        return DataFile(
            names=(f"data/{self.stem}.jsonl", f"{self.stem}.jsonl", f"{self.stem}.parquet"),
            source="data.zip of the Hub dataset THUDM/LongBench, unpacked",
            schema=f"a row a question, with input, context and _id (texts), answers (a list of texts){classes} and "
            "length (a number)",
        )

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The row's prompt."""
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
        """The classes, and wrong answers of the right kind, for the sets that have any."""
        rng = draws(self.name, *key, "distractors")
        if self.metric == "classification":
            classes = self.texts(row, "all_classes")
            return {"all_classes": classes, **distractors(classes, answers, rng)}
        if self.facts.inside:
            return distractors(re.findall(self.facts.inside, context), answers, rng)
        return {}

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The set's metric, best over the answers; of the prediction's first line where LongBench takes that alone."""
        if self.facts.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        compare, classes = METRICS[self.metric], sample.metadata.get("all_classes", ())
        return {self.metric: max(compare(prediction, answer, classes) for answer in sample.answers)}

    def target(self, sample: Sample) -> str | None:
        """The only answer, after upstream's whitespace or a space; no space before Chinese."""
        if self.facts.language == CHINESE and not sample.metadata["white_space"]:
            return sample.answers[0] if len(sample.answers) == 1 else None
        return super().target(sample)

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The mean in percent, rounded to two places as LongBench's.

        Raises:
            UserError: There are none.
        """
        return {self.metric: percent([row[self.metric] for row in scores])}


@dataclass(frozen=True, kw_only=True)
class LongBenchE(LongBench):
    """A set of LongBench-E: rows of all lengths, to be summed up by `bucket_means`."""

    suite = "longbench_e"

    @property
    def default_samples(self) -> int:
        """All of them."""
        return self.facts.samples_e

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return f"{self.dataset}_e"


TASKS: dict[str, Callable[..., Task]] = {
    **{NAME + dataset: partial(LongBench, dataset=dataset) for dataset in SETS},
    **{NAME_E + dataset: partial(LongBenchE, dataset=dataset) for dataset, facts in SETS.items() if facts.samples_e},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LongBenchSummary:
    """Averages in percent; None if a set is missing.

    Attributes:
        overall: ``en``, ``zh`` and ``all``, of LongBench-E ``en`` alone -> mean of its domains' values in `domains`.
        domains: The same -> domain -> mean of its sets. Code counts in both languages.
        gaps: Tasks without a score.
    """

    overall: dict[str, float | None]
    domains: dict[str, dict[str, float | None]]
    gaps: list[str]


def _bucket_of(length: int) -> str:
    """The bucket of a row, by its ``length``."""
    return next(name for name, end in BUCKETS.items() if length < end)


def percent(scores: Sequence[float]) -> float:
    """``round(100 * sum(scores) / len(scores), 2)``, as ``eval.py`` rounds the score of a set.

    Raises:
        UserError: There are none.
    """
    if not scores:
        raise UserError("no scores to sum up; give at least one")
    return round(100 * sum(scores) / len(scores), 2)


def bucket_means(metadata: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float | None]:
    """`percent` of each bucket's scores, None if a bucket has none (``eval.py`` says NaN).

    Args:
        metadata: Of the samples; ``bucket`` counts.
        scores: Scores of the same samples, from 0 to 1.

    Raises:
        UserError: Their numbers differ, or there are none.
    """
    groups = group_scores([str(row["bucket"]) for row in metadata], scores)
    return {name: percent(groups[name]) if name in groups else None for name in BUCKETS}


def summarize(scores: Mapping[str, float | None], *, allow_gaps: bool = False) -> LongBenchSummary:
    """LongBench's averages: domains are means of sets, languages means of domains, so that each domain weighs alike.

    Paper (Bai et al., arXiv 2308.14508), table 2: the macro-average over the task categories, for English, Chinese and
    all sets.

    Args:
        scores: Task, as ``longbench_hotpotqa`` -> score in percent; None is a gap.
        allow_gaps: Whether sets may be missing; the averages that they belong to are None then.

    Raises:
        UserError: A set is missing, or a name is no task of LongBench v1.
    """
    return _averages(scores, {NAME + name: name for name in SETS}, PARTS, allow_gaps)


def summarize_e(
    scores: Mapping[str, Mapping[str, float | None]], *, allow_gaps: bool = False
) -> dict[str, LongBenchSummary]:
    """LongBench-E's averages, as `summarize` has them, for each of `BUCKETS`; all of its sets are English or code.

    Args:
        scores: Task, as ``longbench_e_hotpotqa`` -> bucket -> score in percent, as from `bucket_means`.
        allow_gaps: Whether sets, or buckets of sets, may be missing.

    Raises:
        UserError: A set or a bucket is missing, or a name is no task of LongBench-E.
    """
    sets = {NAME_E + name: name for name, facts in SETS.items() if facts.samples_e}
    return {
        bucket: _averages(
            {task: row.get(bucket) for task, row in scores.items()}, sets, PARTS_E, allow_gaps, f" in bucket {bucket}"
        )
        for bucket in BUCKETS
    }


def group_scores(names: Sequence[str], scores: Sequence[float]) -> dict[str, list[float]]:
    """Scores by name, in order.

    Raises:
        UserError: Their numbers differ, or there are none.
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
        raise UserError(f"no sets {', '.join(unknown)}; expected {', '.join(sets)}")
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
