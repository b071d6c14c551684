"""Answers of a run scored by models: a judge, and an NLI model for citations; kept, so that none is asked twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longlens.bench.grading import Graded, graded_run
from longlens.bench.samples import check_settings
from longlens.bench.store import open_run, part_writer, read_parts
from longlens.errors import UserError
from longlens.tasks.judged import CitedTask, Entails, Judge, JudgedTask

Row = Mapping[str, Any]
"""What is kept of a sample: its id, ``by`` (the model), ``prompts`` (whose, for a judge), ``scores``, ``replies`` and
``round``, the number of the call that wrote it."""


def judge_run(
    folder: Path,
    *,
    judge: str | None,
    nli: str | None,
    options: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> None:
    """Scores what these models have not scored yet, with these prompts; their scores are then those of the run.

    Args:
        folder: Of a run in mode ``generate``.
        judge: A model as in `longlens.load_scorer`, for tasks whose benchmark asks a judge.
        nli: A model as in `longlens.scoring.entailment.load_entails`, for tasks with citations.
        options: dtype, device, trust_remote_code, allow_pickle.
        settings: Where tasks find files that a judge needs, ``data_dir`` and ``prompts_dir``: samples do not say.
        told: Takes lines about what was scored.

    Raises:
        UserError: The run has no such tasks, or a model cannot be loaded, or a file is missing.
    """
    manifest = open_run(folder)
    given = settings or {}
    rows = list(graded_run(folder, thinks=manifest["think_tokens"] > 0, mode=manifest["mode"], settings=given))
    known = list(read_parts(folder, "judged"))
    number = 1 + max((row.get("round", 0) for row in known), default=0)
    asked: list[Graded] = []
    for name, kind, score in ((judge, JudgedTask, _by_judge), (nli, CitedTask, _by_nli)):
        if name is None:
            continue
        mine = [row for row in rows if isinstance(row.task, kind) and row.prediction is not None]
        if not mine:
            raise UserError(f"{folder} has no answers that {name} could score: no task of it is scored by such a model")
        asked += mine
        check_settings(dict.fromkeys(row.task.name for row in asked), given)
        done = {_key(row): row for row in known}
        owed = [row for row in mine if (row.sample.id, *_asker(name, row)) not in done]
        told(f"{name}: {len(owed)} of {len(mine)} answers to score")
        with part_writer(folder, "judged") as write:
            for old in _overtaken(name, mine, known):
                write({**old, "round": number})
            for row, scores, replies in score(name, owed, options) if owed else ():
                by, prompts = _asker(name, row)
                write(
                    {"id": row.sample.id, "by": by, "prompts": prompts, "scores": dict(scores)}
                    | {"replies": list(replies), "round": number}
                )
