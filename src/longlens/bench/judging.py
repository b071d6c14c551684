"""Answers of a run scored by models: a judge, and an NLI model for citations; kept, so that none is asked twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from longlens.bench.grading import Graded, graded_run
from longlens.bench.store import open_run, part_writer, read_parts
from longlens.errors import UserError
from longlens.tasks.judged import CitedTask, Entails, Judge, JudgedTask

JUDGE_TOKENS = 512
"""Tokens of a judge's reply, in which it may give reasons first."""


def judge_run(
    folder: Path,
    *,
    judge: str | None,
    nli: str | None,
    options: Mapping[str, Any],
    told: Callable[[str], None] = lambda line: None,
) -> None:
    """Scores what these models have not scored yet.

    Args:
        folder: Of a run in mode ``generate``.
        judge: A model as in `longlens.load_scorer`, for tasks whose benchmark asks a judge.
        nli: A model as in `longlens.scoring.entailment.load_entails`, for tasks with citations.
        options: dtype, device, trust_remote_code, allow_pickle.
        told: Takes lines about what was scored.

    Raises:
        UserError: The run has no such tasks, or a model cannot be loaded.
    """
    manifest = open_run(folder)
    rows = list(graded_run(folder, thinks=manifest["think_tokens"] > 0, mode=manifest["mode"]))
    done = {(row["by"], row["id"]) for row in read_parts(folder, "judged")}
    for name, kind, score in ((judge, JudgedTask, _by_judge), (nli, CitedTask, _by_nli)):
        if name is None:
            continue
        mine = [row for row in rows if isinstance(row.task, kind) and row.prediction is not None]
        if not mine:
            raise UserError(f"{folder} has no answers that {name} could score: no task of it is scored by such a model")
        owed = [row for row in mine if (name, row.sample.id) not in done]
        told(f"{name}: {len(owed)} of {len(mine)} answers to score")
        if owed:
            with part_writer(folder, "judged") as write:
                for row, scores, replies in score(name, owed, options):
                    write({"id": row.sample.id, "by": name, "scores": dict(scores), "replies": list(replies)})


def _by_judge(
    name: str, rows: list[Graded], options: Mapping[str, Any]
) -> Iterator[tuple[Graded, Mapping[str, float], list[str]]]:
    from longlens.scoring.generate import load_generator

    generator = load_generator(name, max_new_tokens=JUDGE_TOKENS, **options)

    def judge(prompts: Any) -> list[str]:
        return [written.text for written in generator.generate(prompts)]

    for row in rows:
        yield (row, *judged(row, judge))


def judged(row: Graded, judge: Judge) -> tuple[Mapping[str, float], list[str]]:
    """Scores of a judge for one answer, and what it replied; no scores where a reply cannot be read."""
    task = row.task
    assert isinstance(task, JudgedTask)
    assert row.prediction is not None
    prompts = task.judge_prompts(row.sample, row.prediction)
    replies = list(judge(prompts)) if prompts else []
    return (task.judged(row.sample, row.prediction, replies) if prompts else {}), replies


def _by_nli(
    name: str, rows: list[Graded], options: Mapping[str, Any]
) -> Iterator[tuple[Graded, Mapping[str, float], list[str]]]:
    from longlens.scoring.entailment import load_entails

    entails: Entails = load_entails(name, **options)
    for row in rows:
        assert isinstance(row.task, CitedTask)
        assert row.prediction is not None
        yield row, row.task.cited(row.sample, row.prediction, entails), []
