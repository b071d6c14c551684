"""LongBench v1 and LongBench-E: 21 sets in English, Chinese and code, 13 of them again with lengths spread evenly.

Paper: Bai et al., LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding, arXiv 2308.14508.
Prompts, settings and metrics: `longlens.tasks.longbench.sets`, from THUDM/LongBench at 2e00731, MIT. Data: files of
the user, ``data.zip`` of the hub's data set THUDM/LongBench, unpacked; its sets have licences of their own. It has
no files that could be had one by one, and the Parquet copies that others made of them have other columns.

Sample i is row i of the file; nothing is drawn but the wrong answers to choose from. Known differences:

- A prompt does not end in white space here; upstream's does for the sets of code, passage_count,
  passage_retrieval_en and where a row's input does. `LongBench.target` gives that white space back.
- ``length`` is the budget for prompt and answer; upstream's max_length is for the prompt alone (its "31500" for a model
  of 32k is a length of 31500 + ``max_new_tokens``). The middle is cut out of what comes before the answer prefix;
  upstream halves prompt and prefix together, so that the cut is a few tokens elsewhere.
- samsum ends at a line end, as upstream, whose first token however cannot be one.
- Classes are those of the row; upstream takes those of the file's last row, which are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from longlens.tasks.base import Sample, draws
from longlens.tasks.data import DataFile
from longlens.tasks.distractors import distractors
from longlens.tasks.fitting import Draft
from longlens.tasks.longbench.scores import CLASSIFICATION
from longlens.tasks.longbench.sets import CHINESE, CONTEXT, SETS, Facts
from longlens.tasks.longbench.summary import bucket_of, percent
from longlens.tasks.rows import Row, RowsTask


@dataclass(frozen=True, kw_only=True)
class LongBench(RowsTask):
    """A set of LongBench v1.

    Attributes:
        name: Of the task.
        dataset: A key of `SETS`.
        data_dir: The folder that has the file, or its folder ``data``.
    """

    dataset: str

    suite = "longbench"  # overlong is "middle": pred.py, get_pred: "we suggest truncate in the middle"

    def __post_init__(self) -> None:
        """Takes over what the table says of the set."""
        for attribute in ("max_new_tokens", "template", "stop"):
            object.__setattr__(self, attribute, getattr(self.facts, attribute))
        object.__setattr__(self, "category", self.facts.domain)
        object.__setattr__(self, "metric", self.facts.metric.name)

    @property
    def facts(self) -> Facts:
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
        classes = ", all_classes (a list of texts)" if self.facts.metric is CLASSIFICATION else ""
        return DataFile(
            names=(f"data/{self.stem}.jsonl", f"{self.stem}.jsonl", f"{self.stem}.parquet"),
            source="data.zip of the hub's data set THUDM/LongBench, unpacked",
            schema=f"a row a question, with input, context and _id (texts), answers (a list of texts){classes} and "
            "length (a number)",
        )

    def asked(self, row: Row, key: tuple[int, int]) -> Draft:
        """The row's prompt."""
        context, answers = self.text(row, "context"), self.texts(row, "answers")
        words = self.file.get(row.values, "length", int, row.place)
        metadata = {
            "row_id": self.text(row, "_id"),
            "row_length": words,
            "bucket": bucket_of(words),
            "language": self.facts.language,
        }
        start = self.facts.prompt.index(CONTEXT)
        return self.draft(
            self.facts.prompt.format(context=context, input=self.text(row, "input")),
            self.facts.prefix,
            answers=answers,
            context=(start, start + len(context)),
            metadata=metadata | self._others(row, context, answers, key),
        )

    def _others(self, row: Row, context: str, answers: Sequence[str], key: tuple[int, int]) -> dict[str, list[str]]:
        """The classes, and wrong answers of the right kind, for the sets that have any."""
        rng = draws(self.name, *key, "distractors")
        if self.facts.metric is CLASSIFICATION:
            classes = self.texts(row, "all_classes")
            return {"all_classes": classes, "distractors": distractors(classes, answers, rng)}
        if self.facts.inside:
            return {"distractors": distractors(re.findall(self.facts.inside, context), answers, rng)}
        return {}

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The set's metric, best over the answers; of the prediction's first line where LongBench takes that alone."""
        if self.facts.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        classes = sample.metadata.get("all_classes", ())
        return {self.metric: max(self.facts.metric.score(prediction, answer, classes) for answer in sample.answers)}

    def target(self, sample: Sample) -> str | None:
        """As `RowsTask.target`; no space before Chinese."""
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
    """A set of LongBench-E: rows of all lengths, to be summed up by `longlens.tasks.longbench.bucket_means`."""

    suite = "longbench_e"

    @property
    def default_samples(self) -> int:
        """All of them."""
        return self.facts.samples_e

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return f"{self.dataset}_e"
