"""What the answers of a run come to: scores with intervals by task and length, by depth, and by suite."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longlens.bench.grading import Graded, graded_run
from longlens.bench.judging import last_judged
from longlens.bench.store import SCHEMA_VERSION, open_run, read_harness, read_judged
from longlens.bench.suites import suite_summaries
from longlens.metrics.uncertainty import Interval, score_interval
from longlens.tasks import list_tasks
from longlens.tasks.base import JudgedTask
from longlens.tasks.ruler import THRESHOLD

NOT_BOUNDED = ("exact_match", "accuracy")
"""Metrics of which teacher forcing is no lower bound: it equals the first, where an answer ends; the second wants the
right thing last, or a letter."""
DEPTH_PARTS = 5
"""Parts of the text that scores are shown for, where needles stand at any depth."""


def summarise_run(folder: str | os.PathLike[str], *, threshold: float = THRESHOLD) -> dict[str, Any]:
    """The results of a run, from the answers that are there.

    Args:
        folder: Of the run.
        threshold: What RULER's means have to be above, for its effective length.

    Returns:
        ``tasks``: for each task, length and seed what `summarise_batch` says, and ``judged_by``: the models whose
        scores are among them, ``by`` and, of a judge, whose ``prompts``; ``harness``: results of tasks of
        lm-evaluation-harness; ``suites``: see `longlens.bench.suites.suite_summaries`; and what the run is of.

    Raises:
        UserError: The folder holds no run, or is damaged.
    """
    path = Path(folder)
    manifest = open_run(path)
    graded = list(graded_run(path, manifest))
    judged, judges = _judged(path, graded)
    tasks = summarise(graded, judged=judged, mode=manifest["mode"])
    for name, batch in tasks.items():
        batch["judged_by"] = judges[name]
    harness = {row["name"]: row for row in read_harness(path, "result")}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": manifest["model"],
        "mode": manifest["mode"],
        "template": manifest["template"],
        "tasks": tasks,
        "harness": harness,
        "suites": suite_summaries(tasks, graded, threshold=threshold) if manifest["mode"] == "generate" else {},
    }


def summarise(
    graded: Iterable[Graded], *, judged: Mapping[str, Mapping[str, float]] | None = None, mode: str = "generate"
) -> dict[str, dict[str, Any]]:
    """`summarise_batch` of each task, length and seed, in the order of the tasks and by length."""
    batches: dict[str, list[Graded]] = {}
    for one in graded:
        batches.setdefault(one.batch, []).append(one)
    # Processes that share a batch write their samples apart.
    for rows in batches.values():
        rows.sort(key=lambda row: row.sample.metadata.get("index") or 0)
    made = [(name, summarise_batch(rows, judged or {}, mode)) for name, rows in batches.items()]
    known = list_tasks()
    return dict(sorted(made, key=lambda pair: (known.index(pair[1]["task"]), pair[1]["length"] or 0)))


def summarise_batch(rows: Sequence[Graded], judged: Mapping[str, Mapping[str, float]], mode: str) -> dict[str, Any]:
    """Scores of one task at one length.

    Returns:
        ``score`` (percent) and ``interval`` of ``metric``; ``scores`` of all; numbers of samples that were scored, that
        have no answer yet, were left out for their length, were shortened, and of answers that were cut short;
        ``needs_judge``: whether the score is None since no judge was asked; ``depths``; and which text or data the
        samples were made of.
    """
    first = rows[0]
    task = first.task
    rows = [
        row if row.scores is None else replace(row, scores={**row.scores, **judged.get(row.sample.id, {})})
        for row in rows
    ]
    merged = [row.scores for row in rows if row.scores is not None]
    metric = {"teacher-forced": "teacher_forced", "choice": "choice_accuracy"}.get(mode, task.metric)
    is_judged = isinstance(task, JudgedTask) and any(task.judged_metric in scores for scores in merged)
    needs_judge = isinstance(task, JudgedTask) and task.needs_judge and mode == "generate" and not is_judged
    if isinstance(task, JudgedTask) and (is_judged or needs_judge):
        metric = task.judged_metric
    values = [scores[metric] for scores in merged if metric in scores]
    scores = {} if not merged else (task.aggregate(merged) if mode == "generate" else _means(merged))
    nll = [row.nll for row in rows if row.nll is not None]
    made = first.sample.metadata
    return {
        "task": task.name,
        "suite": task.suite,
        "category": task.category,
        "length": made.get("requested_length"),
        "seed": made.get("seed"),
        "metric": metric,
        "score": scores.get(metric),
        "interval": percent_interval(values),
        "scores": scores,
        "num_samples": len(merged),
        "num_scored": len(merged) if task.joint and metric == task.metric else len(values),
        "num_missing": sum(row.scores is None and not row.is_skipped for row in rows),
        "num_skipped": sum(row.is_skipped for row in rows),
        "num_cut": sum("cut" in row.sample.metadata for row in rows),
        "num_truncated_answers": sum(row.is_truncated for row in rows),
        "needs_judge": needs_judge and bool(merged),
        "is_lower_bound": mode == "teacher-forced" and task.metric not in NOT_BOUNDED,
        "answer_nll": sum(nll) / len(nll) if nll else None,
        "num_choices": 1 + len(made["distractors"]) if mode == "choice" and "distractors" in made else None,
        "depths": by_depth(rows, metric),
        "made_of": {key: made[key] for key in ("settings", "haystack", "data") if key in made},
    }


def by_depth(rows: Sequence[Graded], metric: str) -> list[dict[str, Any]]:
    """Scores by where the one needle of a sample stands: at each depth of a grid, else in fifths of the text.

    Returns:
        ``from``, ``to`` (percent of the text), ``num_samples``, ``score`` and ``interval``; nothing for tasks whose
        samples have several needles or none.
    """
    found: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        depth = row.sample.metadata.get("depth")
        depths = row.sample.metadata.get("depths", [])
        if row.scores is None or metric not in row.scores or (depth is None and len(depths) != 1):
            continue
        found.setdefault(_part(depth, depths), []).append(row.scores[metric])
    return [
        {
            "from": low,
            "to": high,
            "num_samples": len(values),
            "score": 100 * sum(values) / len(values),
            "interval": percent_interval(values),
        }
        for (low, high), values in sorted(found.items())
    ]


def _part(depth: float | None, depths: Sequence[float]) -> tuple[float, float]:
    if depth is not None:
        return float(depth), float(depth)
    width = 100 / DEPTH_PARTS
    part = min(DEPTH_PARTS - 1, int(depths[0] / width))
    return part * width, (part + 1) * width


def percent_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of a mean of scores, in percent: see `longlens.metrics.uncertainty.score_interval`."""
    both = score_interval(values)
    return None if both is None else (100 * both[0], 100 * both[1])


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: 100 * sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _judged(
    path: Path, graded: Sequence[Graded]
) -> tuple[dict[str, dict[str, float]], dict[str, list[dict[str, str | None]]]]:
    """Scores of the judge and the NLI model that were asked last, by sample; and which ones those are, by batch."""
    known = list(read_judged(path))
    batches: dict[str, set[str]] = {}
    for row in graded:
        batches.setdefault(row.batch, set()).add(row.sample.id)
    scores: dict[str, dict[str, float]] = {}
    judges: dict[str, list[dict[str, str | None]]] = {}
    for name, ids in batches.items():
        lines = last_judged(ids, known)
        for line in lines:
            scores.setdefault(line["id"], {}).update(line["scores"])
        askers = dict.fromkeys((line["by"], line.get("prompts")) for line in lines)
        judges[name] = [{"by": by, "prompts": prompts} for by, prompts in askers]
    return scores, judges
