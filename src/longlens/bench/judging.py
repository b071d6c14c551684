"""Answers of a run scored by models: a judge, and an NLI model for citations; kept, so that none is asked twice.

A line has a sample's ``id``, ``by`` (name of the model), ``model`` (hash of its identity), ``prompts`` (whose the judge
got; null for an NLI model), ``generation`` (settings in force and those of the model that are ignored; null where
nothing is generated), ``scores`` and ``replies``. Scores of several judges, or by several prompts, stay side by side;
those that were asked for last are the run's. A line of before 0.2 names no ``model``: it counts until that judge is
asked again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longlens.bench.results import GradedSample, JudgeKey, Line, grade_run, judge_key, latest_lines
from longlens.bench.selection import check_settings
from longlens.bench.store import part_writer, read_judged, read_manifest
from longlens.errors import UserError
from longlens.reasoning import final_answer
from longlens.runs.identity import canonical_sha256
from longlens.settings.options import Loading
from longlens.tasks.base import CitedTask, Judge, JudgedTask

_LOGGER = logging.getLogger(__name__)
JUDGE_TOKENS = 512
"""Tokens of a judge's reply, in which it may give reasons first; more where the benchmark gives more."""
Scored = Iterator[tuple[GradedSample, Mapping[str, float], list[str], Mapping[str, Any] | None]]


def judge_run(
    folder: Path,
    *,
    judge: str | None,
    nli: str | None,
    loading: Loading,
    places: Mapping[str, Any] | None = None,
) -> None:
    """Scores what these models have not scored yet by these prompts; what they have scored is the run's again.

    Args:
        folder: Folder of a run in mode ``generate``.
        judge: Name or path of a model, for tasks whose benchmark asks a judge.
        nli: Name or path of an NLI model, for tasks with citations.
        loading: How they are loaded.
        places: Where tasks find what a judge needs, ``data_dir`` and ``prompts_dir``; a run does not say.

    Raises:
        UserError: The run has no such tasks, none of them looks in such a place, a file of theirs is missing, or a
            model cannot be loaded.
    """
    manifest = read_manifest(folder)
    rows = list(grade_run(folder, manifest, places=places, with_prompts=nli is not None))
    known = list(read_judged(folder))
    asked = [
        (name, [row for row in rows if isinstance(row.task, kind) and row.prediction is not None], score)
        for name, kind, score in ((judge, JudgedTask, _by_judge), (nli, CitedTask, _by_nli))
        if name is not None
    ]
    check_settings(dict.fromkeys(row.task.name for _, mine, _ in asked for row in mine), places or {})
    for name, mine, score in asked:
        if not mine:
            raise UserError(f"{folder} has no answers for {name} to score: none of its tasks uses such a model")
        model = _model_sha256(name, loading)
        again, owed = _split(name, model, mine, known)
        _LOGGER.info(f"{name}: {len(owed)} of {len(mine)} answers to score")
        write = part_writer(folder, "judged")
        for line in again:
            write(line)
        for row, scores, replies, generation in score(name, owed, loading) if owed else ():
            model = model or _model_sha256(name, loading)  # its weights are here now
            by = dict(zip(("by", "model", "prompts"), _judge_key(name, model, row), strict=True))
            said = {"generation": generation, "scores": dict(scores), "replies": list(replies)}
            write({"id": row.sample.id} | by | said)


def _model_sha256(name: str, loading: Loading) -> str | None:
    """Hash of what the model is, dtype included; None while its weights are not on this machine."""
    from longlens.models import identify

    identity = identify(name, loading)
    return None if identity is None else canonical_sha256(identity.to_json())


def _split(
    name: str, model: str | None, rows: Sequence[GradedSample], known: Sequence[Line]
) -> tuple[list[Line], list[GradedSample]]:
    """Lines of a model that another one came after, and rows that it has not scored."""
    batches: dict[str, list[GradedSample]] = {}
    for row in rows:
        batches.setdefault(row.batch, []).append(row)
    again: list[Line] = []
    owed: list[GradedSample] = []
    for batch in batches.values():
        ids = {row.sample.id for row in batch}
        key = _judge_key(name, model, batch[0])
        mine = [line for line in known if line["id"] in ids and judge_key(line) == key]
        scored = {line["id"]: line for line in mine if model is not None}
        if key not in map(judge_key, latest_lines(ids, known)):
            again += scored.values()
        owed += [row for row in batch if row.sample.id not in scored]
    return again, owed


def _judge_key(name: str, model: str | None, row: GradedSample) -> JudgeKey:
    return name, model, row.task.prompts_by if isinstance(row.task, JudgedTask) else None


def _by_judge(name: str, rows: Sequence[GradedSample], loading: Loading) -> Scored:
    from longlens.models.generate import load_generator

    tokens = JUDGE_TOKENS
    for row in rows:
        assert isinstance(row.task, JudgedTask)
        row.task.judge_prompts(row.sample, row.prediction or "")  # a missing file is told before the model is loaded
        tokens = max(tokens, row.task.judge_tokens)
    generator = load_generator(name, max_new_tokens=tokens, **asdict(loading))

    def judge(prompts: Any) -> list[str]:
        return [written.text for written in generator.generate(prompts)]

    for row in rows:
        yield (row, *judge_answer(row, judge), generator.generation)


def judge_answer(row: GradedSample, judge: Judge) -> tuple[Mapping[str, float], list[str]]:
    """Scores of a judge for one answer, and what it replied; no scores where a reply cannot be read.

    What a judge says after its reasoning counts.
    """
    task = row.task
    assert isinstance(task, JudgedTask)
    assert row.prediction is not None
    prompts = task.judge_prompts(row.sample, row.prediction)
    replies = list(judge(prompts)) if prompts else []
    said = [final_answer(reply) for reply in replies]
    return (task.judged(row.sample, row.prediction, said) if prompts else {}), replies


def _by_nli(name: str, rows: Sequence[GradedSample], loading: Loading) -> Scored:
    from longlens.models.entailment import load_entails

    for row in rows:
        if not row.sample.prompt:
            raise UserError(
                f"{row.sample.id}: its prompt with the cited documents was not stored: run the benchmark again and "
                "store the prompts"
            )
    model = load_entails(name, **asdict(loading))
    for row in rows:
        assert isinstance(row.task, CitedTask)
        assert row.prediction is not None
        yield row, row.task.cited(row.sample, row.prediction, model), [], model.generation
