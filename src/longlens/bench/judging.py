"""Scores the answers of a run with models: an LLM judge, and an NLI model for citations; the scores are stored.

A line has a sample's ``id``, ``by`` (name of the model), ``model`` (hash of its identity), ``prompts`` (origin of the
judge prompts; null for an NLI model), ``generation`` (effective generation settings, and those of the model that are
ignored; null if nothing is generated), ``scores`` and ``replies``. Scores of several judges, or with several judge
prompts, are all kept; the run uses those that were requested last. A line from before version 0.2 has no ``model``: it
is valid until that judge is run again.
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
"""Minimum token limit of a judge's reply, which may contain reasoning first; a benchmark may set a larger limit."""
Scored = Iterator[tuple[GradedSample, Mapping[str, float], list[str], Mapping[str, Any] | None]]


def judge_run(
    folder: Path,
    *,
    judge: str | None,
    nli: str | None,
    loading: Loading,
    places: Mapping[str, Any] | None = None,
) -> None:
    """Scores all answers that these models have not scored yet with these prompts, and makes their scores current.

    Args:
        folder: Run directory in mode ``generate``.
        judge: Name or path of the judge, for tasks whose benchmark uses a judge.
        nli: Name or path of an NLI model, for tasks with citations.
        loading: How the models are loaded.
        places: Where tasks find files for the judge: ``data_dir`` and ``prompts_dir``, which a run does not record.

    Raises:
        UserError: The run has no such tasks, no task uses such a setting, a file of a task does not exist, or a model
            cannot be loaded.
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
            model = model or _model_sha256(name, loading)  # the weights are downloaded now
            by = dict(zip(("by", "model", "prompts"), _judge_key(name, model, row), strict=True))
            said = {"generation": generation, "scores": dict(scores), "replies": list(replies)}
            write({"id": row.sample.id} | by | said)


def _model_sha256(name: str, loading: Loading) -> str | None:
    """Returns a hash of the model's identity, dtype included; None if its weights are not downloaded yet."""
    from longlens.models import identify

    identity = identify(name, loading)
    return None if identity is None else canonical_sha256(identity.to_json())


def _split(
    name: str, model: str | None, rows: Sequence[GradedSample], known: Sequence[Line]
) -> tuple[list[Line], list[GradedSample]]:
    """Returns lines of the model to repeat, because another model was used after it, and rows without its score."""
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
        row.task.judge_prompts(row.sample, row.prediction or "")  # reports a missing file before the model is loaded
        tokens = max(tokens, row.task.judge_tokens)
    generator = load_generator(name, max_new_tokens=tokens, **asdict(loading))

    def judge(prompts: Any) -> list[str]:
        return [written.text for written in generator.generate(prompts)]

    for row in rows:
        yield (row, *judge_answer(row, judge), generator.generation)


def judge_answer(row: GradedSample, judge: Judge) -> tuple[Mapping[str, float], list[str]]:
    """Returns a judge's scores for one answer, and its replies; no scores if a reply cannot be parsed.

    Only the text after the judge's reasoning is parsed.
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
