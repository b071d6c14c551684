"""Scores of answers: which text of an output is the answer, and what its task says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlens.bench.samples import run_sample, task_of
from longlens.bench.store import MANIFEST, as_texts, read_answers, read_samples
from longlens.errors import UserError, library_errors, shown, shown_value
from longlens.reasoning import Marks, final_answer
from longlens.runs.jsonl import read_lines
from longlens.tasks.base import Sample, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Graded:
    """A sample and its scores.

    Attributes:
        sample: The sample; its prompt is empty where it was not asked for, or not stored.
        task: Its task.
        batch: Task, length and seed.
        prediction: The answer without reasoning; None in other modes, or where there is none.
        scores: Numbers from 0 to 1; None where there is no answer.
        is_truncated: Whether the answer ended for its number of tokens.
        is_skipped: Whether the sample was left out for its length.
        nll: Negative log-likelihood of the right answer, in nats; None in mode generate.
    """

    sample: Sample
    task: Task
    batch: str
    prediction: str | None = None
    scores: Mapping[str, float] | None = None
    is_truncated: bool = False
    is_skipped: bool = False
    nll: float | None = None


def answer_text(
    output: str,
    stop: Sequence[str] = (),
    *,
    is_truncated: bool = False,
    thinks: bool = False,
    marks: Marks | None = None,
) -> str:
    """The answer in an output: what comes after reasoning, up to the first stop.

    Reasoning that has begun and not ended has no answer after it, nor has an output that was cut short while reasoning
    was wanted and its end did not come (chat templates may open the reasoning themselves).

    Args:
        output: What the model wrote.
        stop: Where an answer ends.
        is_truncated: Whether it ended for its number of tokens.
        thinks: Whether reasoning was wanted.
        marks: Of reasoning, beside those of `longlens.reasoning.MARKS`.
    """
    answer = final_answer(output, marks=marks, must_end=thinks and is_truncated)
    for term in stop:
        answer = answer.partition(term)[0] if term else answer
    return answer


def graded_run(
    folder: Path,
    manifest: Mapping[str, Any],
    *,
    places: Mapping[str, Any] | None = None,
    with_prompts: bool = False,
) -> Iterator[Graded]:
    """The samples of a run with what their answers score, in the order in which they were asked.

    Args:
        folder: Of the run.
        manifest: What it is of, as `longlens.bench.store.open_run` gives it.
        places: Where files are that tasks need for more than that, see `task_of`.
        with_prompts: Whether samples have their own prompts, which scores do not need and judges may.
    """
    mode, marks = manifest["mode"], think_marks(manifest)
    answers: dict[str, dict[str, Any]] = {}
    for row in read_answers(folder, mode):
        answers.setdefault(f"{row['key']} {row['prompt_sha256']}", row)
    tasks: dict[str, Task] = {}
    for place, row in read_samples(folder):
        sample = run_sample(row, place, with_prompt=with_prompts)
        if row["batch"] not in tasks:
            tasks[row["batch"]] = task_of(sample, places)
        made = {"sample": sample, "task": tasks[row["batch"]], "batch": row["batch"], "is_skipped": row["skipped"]}
        keys = [sample.id] if mode == "generate" else [f"{sample.id}#{n}" for n in range(len(row["continuations"]))]
        found = [answers.get(f"{key} {row['prompt_sha256']}") for key in keys]
        if row["skipped"] or not found or any(answer is None for answer in found):
            yield Graded(**made)
        elif mode == "generate":
            yield _generated(made, row, found[0] or {}, place, thinks=manifest["think_tokens"] > 0, marks=marks)
        else:
            yield _chosen(made, [answer or {} for answer in found], row["continuations"], mode)


def think_marks(manifest: Mapping[str, Any]) -> Marks | None:
    """The marks of reasoning that a run was told of.

    Raises:
        UserError: The manifest is damaged.
    """
    found = manifest.get("think_marks")
    if found is None:
        return None
    begin, end = as_texts(found, f"{MANIFEST}: think_marks")
    return begin, end


def _generated(
    made: dict[str, Any],
    row: Mapping[str, Any],
    answer: Mapping[str, Any],
    place: str,
    *,
    thinks: bool,
    marks: Marks | None,
) -> Graded:
    is_truncated = bool(answer["is_truncated"])
    prediction = answer_text(answer["text"], row["task_stop"], is_truncated=is_truncated, thinks=thinks, marks=marks)
    scores = _scored(made["task"], made["sample"], prediction, place)
    return Graded(**made, prediction=prediction, scores=scores, is_truncated=is_truncated)


def _scored(task: Task, sample: Sample, prediction: str, place: str) -> dict[str, float]:
    """The task's score; what it needs of a sample's metadata may be missing in files of others."""
    with library_errors(f"{place} is no sample of {task.name}", "give a file of longlens bench build"):
        return task.score(sample, prediction)


def _chosen(made: dict[str, Any], answers: Sequence[Mapping[str, Any]], texts: Sequence[str], mode: str) -> Graded:
    nll = -float(answers[0]["logprob"])
    if mode == "teacher-forced":
        return Graded(**made, scores={"teacher_forced": float(answers[0]["is_greedy"])}, nll=nll)
    logprobs = [float(answer["logprob"]) for answer in answers]
    by_byte = [logprob / len(text.encode()) for logprob, text in zip(logprobs, texts, strict=True)]
    scores = {"choice_accuracy": _first_is_largest(logprobs), "choice_accuracy_by_byte": _first_is_largest(by_byte)}
    return Graded(**made, scores=scores, nll=nll)


def _first_is_largest(values: Sequence[float]) -> float:
    """1 where the first value is larger than all others: a tie is not a right answer."""
    return float(all(values[0] > value for value in values[1:]))


def graded_predictions(samples: Iterable[Sample], path: Path, *, marks: Marks | None = None) -> list[Graded]:
    """Samples with the scores of a file of predictions.

    Args:
        samples: All that were asked.
        path: JSON Lines with ``id`` and ``prediction``, one for each sample.
        marks: As in `answer_text`.

    Raises:
        UserError: The file is broken, or ids are missing, too many, or there twice.
    """
    asked = {sample.id: sample for sample in samples}
    said: dict[str, str] = {}
    for line in read_lines(path):
        row, place = line.fields('{"id": "…", "prediction": "…"}'), line.place
        key, text = row.get("id"), row.get("prediction")
        if not isinstance(key, str) or not isinstance(text, str):
            fields = f"the fields {shown_value(list(row))}" if row else "no fields"
            raise UserError(f'{place}: expected {{"id": "…", "prediction": "…"}}, two texts; got {fields}')
        if key in said:
            raise UserError(f"{place}: the id {shown_value(key)} is there twice: give one prediction for each sample")
        if key not in asked:
            raise UserError(
                f"{place}: no sample has the id {shown_value(key)}: are these predictions of other samples?"
            )
        said[key] = text
    missing = [key for key in asked if key not in said]
    if missing:
        raise UserError(
            f"{shown(path)} has no prediction for {len(missing)} of {len(asked)} samples, such as "
            f"{shown_value(missing[0])}: give one for each, an empty string where the model said nothing"
        )
    tasks: dict[str, Task] = {}
    graded = []
    for sample in asked.values():
        batch = sample.id.rpartition("-")[0] or sample.id
        if batch not in tasks:
            tasks[batch] = task_of(sample)
        prediction = answer_text(said[sample.id], tasks[batch].stop, marks=marks)
        scores = _scored(tasks[batch], sample, prediction, f"{shown(path)}, {shown_value(sample.id)}")
        graded.append(Graded(sample=sample, task=tasks[batch], batch=batch, prediction=prediction, scores=scores))
    return graded
