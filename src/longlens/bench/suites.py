"""The benchmarks' own averages over the tasks of a run; where a task is missing there is none, and it is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from longlens.bench.grading import Graded
from longlens.tasks import helmet, longbench
from longlens.tasks.ruler import aggregate as ruler

Batches = Mapping[str, Mapping[str, Any]]
"""What `longlens.bench.summary.summarise_batch` says, by batch."""


def suite_summaries(
    batches: Batches, graded: Sequence[Graded], *, threshold: float = ruler.THRESHOLD
) -> dict[str, Any]:
    """Averages of the suites of which a run has tasks.

    Args:
        batches: Scores of all batches.
        graded: Their samples.
        threshold: What RULER's means have to be above, for its effective length.

    Returns:
        By suite: ``ruler`` as `longlens.tasks.ruler.aggregate.summarise`; ``helmet`` by length as
        `longlens.tasks.helmet.summary.summarise`; ``longbench``, ``longbench_e`` and ``longbench_v2`` as in
        `longlens.tasks.longbench.summary`. ``gaps`` in each names what is missing.
    """
    there = {batch["suite"] for batch in batches.values() if batch["score"] is not None}
    made: dict[str, Callable[[], Any]] = {
        "ruler": lambda: asdict(ruler.summarise(_by_length(batches, "ruler"), threshold=threshold, allow_gaps=True)),
        "helmet": lambda: {
            str(length): asdict(helmet.summary.summarise(scores, allow_gaps=True))
            for length, scores in _all_scores(batches, "helmet").items()
        },
        "longbench": lambda: asdict(longbench.summary.summarise(_flat(batches, "longbench"), allow_gaps=True)),
        "longbench_e": lambda: {
            bucket: asdict(summary)
            for bucket, summary in longbench.summary.summarise_e(_buckets(batches, graded), allow_gaps=True).items()
        },
        "longbench_v2": lambda: _v2(graded),
    }
    return {suite: make() for suite, make in made.items() if suite in there}


def _of(batches: Batches, suite: str) -> list[Mapping[str, Any]]:
    return [batch for batch in batches.values() if batch["suite"] == suite and batch["score"] is not None]


def _by_length(batches: Batches, suite: str) -> dict[int, dict[str, float | None]]:
    found: dict[int, dict[str, float | None]] = {}
    for batch in _of(batches, suite):
        found.setdefault(batch["length"] or 0, {})[batch["task"]] = batch["score"]
    return found


def _all_scores(batches: Batches, suite: str) -> dict[int, dict[str, Mapping[str, float | None]]]:
    found: dict[int, dict[str, Mapping[str, float | None]]] = {}
    for batch in _of(batches, suite):
        found.setdefault(batch["length"] or 0, {})[batch["task"]] = batch["scores"]
    return found


def _flat(batches: Batches, suite: str) -> dict[str, float | None]:
    return {batch["task"]: batch["score"] for batch in _of(batches, suite)}


def _buckets(batches: Batches, graded: Sequence[Graded]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for batch in _of(batches, "longbench_e"):
        rows = [
            row for row in graded if row.task.name == batch["task"] and row.scores and batch["metric"] in row.scores
        ]
        metadata = [row.sample.metadata for row in rows]
        scores = [(row.scores or {})[batch["metric"]] for row in rows]
        found[batch["task"]] = longbench.summary.bucket_means(metadata, scores)
    return found


def _v2(graded: Sequence[Graded]) -> dict[str, dict[str, float | None]]:
    rows = [row for row in graded if row.task.suite == "longbench_v2" and row.scores]
    metadata = [row.sample.metadata for row in rows]
    names = ("accuracy", "compensated")
    return {
        name: longbench.summary.summarise_v2(metadata, [(row.scores or {})[name] for row in rows]) for name in names
    }
