"""The benchmarks' own averages over the tasks of a run; where a task is missing there is none, and it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from longlens.bench.grading import Graded
from longlens.tasks import helmet, longbench, ruler

Batches = Mapping[str, Mapping[str, Any]]
"""What `longlens.bench.summary.summarise_batch` says, by batch."""
Tasks = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The batches of each task, at one length."""
Lengths = dict[int, dict[str, dict[str, Mapping[str, Any]]]]


def suite_summaries(
    batches: Batches, graded: Sequence[Graded], *, threshold: float = ruler.THRESHOLD
) -> dict[str, Any]:
    """Averages of the suites of which a run has tasks.

    Args:
        batches: Scores of all batches.
        graded: Their samples.
        threshold: What RULER's means have to be above, for its effective length.

    Returns:
        By suite: ``ruler`` as `longlens.tasks.ruler.summarize`; the others by length, 0 where data fixes it,
        since samples that are cut to another length are other ones: ``helmet`` as
        `longlens.tasks.helmet.summarize`; ``longbench``, ``longbench_e`` and ``longbench_v2`` as in
        `longlens.tasks.longbench`. ``gaps`` in each names what is missing. Several seeds of a task count as
        more samples of it.
    """
    made: dict[str, Callable[[Lengths], Any]] = {
        "ruler": lambda found: asdict(
            ruler.summarize(
                {length: _scores(tasks) for length, tasks in found.items()}, threshold=threshold, allow_gaps=True
            )
        ),
        "helmet": _each(lambda tasks: asdict(helmet.summarize(_all_scores(tasks), allow_gaps=True))),
        "longbench": _each(lambda tasks: asdict(longbench.summarize(_scores(tasks), allow_gaps=True))),
        "longbench_e": _each(lambda tasks: _e(tasks, graded)),
        "longbench_v2": _each(lambda tasks: _v2(tasks, graded)),
    }
    found: dict[str, Lengths] = {}
    for name, batch in batches.items():
        if batch["score"] is not None:
            of_length = found.setdefault(batch["suite"], {}).setdefault(batch["length"] or 0, {})
            of_length.setdefault(batch["task"], {})[name] = batch
    return {suite: make(found[suite]) for suite, make in made.items() if suite in found}


def _each(make: Callable[[Tasks], Any]) -> Callable[[Lengths], dict[str, Any]]:
    return lambda found: {str(length): make(tasks) for length, tasks in found.items()}


def _scores(tasks: Tasks) -> dict[str, float | None]:
    return {task: _mean((batch["score"], batch["num_scored"]) for batch in own.values()) for task, own in tasks.items()}


def _all_scores(tasks: Tasks) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for task, own in tasks.items():
        names = dict.fromkeys(name for batch in own.values() for name in batch["scores"])
        found[task] = {
            name: _mean(
                (batch["scores"][name], batch["num_samples"]) for batch in own.values() if name in batch["scores"]
            )
            for name in names
        }
    return found


def _mean(pairs: Iterable[tuple[float, int]]) -> float:
    """The mean of means over so many samples each."""
    known = list(pairs)
    return sum(mean * count for mean, count in known) / sum(count for _, count in known)


def _e(tasks: Tasks, graded: Sequence[Graded]) -> dict[str, Any]:
    buckets: dict[str, dict[str, float | None]] = {}
    for task, own in tasks.items():
        rows = [row for row in graded if row.batch in own and row.scores]
        scores = [(row.scores or {})[row.task.metric] for row in rows]
        buckets[task] = longbench.bucket_means([row.sample.metadata for row in rows], scores)
    summaries = longbench.summarize_e(buckets, allow_gaps=True)
    return {bucket: asdict(summary) for bucket, summary in summaries.items()}


def _v2(tasks: Tasks, graded: Sequence[Graded]) -> dict[str, dict[str, float | None]]:
    names = {name for own in tasks.values() for name in own}
    rows = [row for row in graded if row.batch in names and row.scores]
    metadata = [row.sample.metadata for row in rows]
    return {
        name: longbench.summarize_v2(metadata, [(row.scores or {})[name] for row in rows])
        for name in ("accuracy", "compensated")
    }
