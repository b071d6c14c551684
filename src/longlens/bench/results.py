"""Computes the results of a run: scores of samples, and means by task and length, by depth, and by suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from longlens.bench.samples import read_sample_file, stored_sample
from longlens.bench.selection import task_of
from longlens.bench.store import (
    SCHEMA_VERSION,
    read_answers,
    read_harness,
    read_judged,
    read_manifest,
    read_samples,
)
from longlens.errors import UserError, library_errors, shown, shown_value
from longlens.metrics.uncertainty import Interval, score_interval
from longlens.reasoning import Marks, final_answer
from longlens.runs.jsonl import read_lines
from longlens.tasks import helmet, list_tasks, longbench, ruler
from longlens.tasks.base import JudgedTask, Sample, Task

NOT_BOUNDED = ("exact_match", "accuracy")
"""Metrics for which teacher forcing is not a lower bound: for the first, the scores are equal up to the end of the
answer; the second requires the right answer at the end, or a letter."""
_IN_TEXT = "distractors_in_text"
NO_CHANCES: dict[str, float | None] = {"num_choices": None, "chance": None, "chance_in_text": None}
DEPTH_PARTS = 5
"""Depth ranges for tasks whose needles have arbitrary depths."""
Line = Mapping[str, Any]
"""Scores of judges and NLI models, as `longlens.bench.judging` writes them."""
JudgeKey = tuple[str, str | None, str | None]
Batches = Mapping[str, Mapping[str, Any]]
"""Results of `summarize_batch`, by batch."""
Tasks = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Results of the batches of each task, at one length."""


def summarize_run(folder: str | os.PathLike[str], *, threshold: float = ruler.THRESHOLD) -> dict[str, Any]:
    """Computes the results of a run from the available answers.

    Args:
        folder: Run directory.
        threshold: Threshold of RULER's means, for the effective length.

    Returns:
        ``tasks``: for each task, length and seed the result of `summarize_batch`, and ``judged_by``: the models whose
        scores are included, as ``by`` and, for a judge, the origin of its ``prompts``; ``harness``: results of tasks of
        lm-evaluation-harness; ``suites``: see `suite_averages`; and the identity of the run.

    Raises:
        UserError: The directory contains no run, or is damaged.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    samples = list(grade_run(path, manifest))
    scores, judges = _latest_scores(path, samples)
    about = {name: manifest[name] for name in ("model", "mode", "template")}
    if isinstance(manifest.get("name"), str):
        about["name"] = manifest["name"]
    about["dtype"] = (manifest.get("engine") or {}).get("dtype")
    results = _results(about, samples, scores=scores, threshold=threshold)
    for name, batch in results["tasks"].items():
        batch["judged_by"] = judges[name]
    return results | {"harness": {row["name"]: row for row in read_harness(path, "result")}}


def summarize_predictions(samples: Path, predictions: Path, *, marks: Marks | None = None) -> dict[str, Any]:
    """Computes the results of a file of predictions, in the format of `summarize_run`.

    Args:
        samples: Sample file of `longlens bench build` that the predictions answer.
        predictions: JSON Lines with ``id`` and ``prediction``.
        marks: Begin and end of reasoning, in addition to those of `longlens.reasoning.MARKS`.

    Raises:
        UserError: A file is damaged, or ids are missing, unknown, or occur twice.
    """
    graded = grade_predictions(read_sample_file(samples), predictions, marks=marks)
    return _results({"model": predictions.stem, "mode": "generate"}, graded)


def _results(
    about: Mapping[str, Any],
    samples: Sequence[GradedSample],
    *,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    threshold: float = ruler.THRESHOLD,
) -> dict[str, Any]:
    tasks = summarize(samples, judged=scores, mode=about["mode"])
    suites = suite_averages(tasks, samples, threshold=threshold) if about["mode"] == "generate" else {}
    return {"schema_version": SCHEMA_VERSION, **about, "tasks": tasks, "harness": {}, "suites": suites}


def summarize(
    graded: Iterable[GradedSample], *, judged: Mapping[str, Mapping[str, float]] | None = None, mode: str = "generate"
) -> dict[str, dict[str, Any]]:
    """Applies `summarize_batch` to each task, length and seed, in the order of the tasks and by length."""
    batches: dict[str, list[GradedSample]] = {}
    for one in graded:
        batches.setdefault(one.batch, []).append(one)
    # Processes that share a batch write their samples to separate files.
    for rows in batches.values():
        rows.sort(key=lambda row: row.sample.metadata.get("index") or 0)
    made = [(name, summarize_batch(rows, judged or {}, mode)) for name, rows in batches.items()]
    known = list_tasks()
    return dict(sorted(made, key=lambda pair: (known.index(pair[1]["task"]), pair[1]["length"] or 0)))


def summarize_batch(
    rows: Sequence[GradedSample], judged: Mapping[str, Mapping[str, float]], mode: str
) -> dict[str, Any]:
    """Computes the scores of one task at one length.

    Returns:
        ``score`` (percent) and ``interval`` of ``metric``; ``scores`` of all metrics; the numbers of samples that were
        scored, have no answer yet, were skipped because of their length, or were truncated, and of truncated answers;
        ``needs_judge``: whether the score is None because no judge was run; ``depths``; and the text or data from which
        the samples were built. In mode choice also ``num_choices`` (None if samples differ in it); ``chance``, the mean
        over the scored samples of 100 / choices; and ``chance_in_text``, the mean of 100 / choices that occur in the
        text: the score of a model that only knows which values it has read (None if samples do not record it).
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
    metadata = first.sample.metadata
    return {
        "task": task.name,
        "suite": task.suite,
        "category": task.category,
        "length": metadata.get("requested_length"),
        "seed": metadata.get("seed"),
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
        **(_chances([row for row in rows if row.scores is not None]) if mode == "choice" else NO_CHANCES),
        "depths": by_depth(rows, metric),
        "made_of": {key: metadata[key] for key in ("settings", "haystack", "data") if key in metadata},
    }


def _chances(rows: Sequence[GradedSample]) -> dict[str, float | None]:
    """Returns the expected score of guessing on these samples; see `summarize_batch`."""
    made = [row.sample.metadata for row in rows]
    sizes = [1 + len(metadata["distractors"]) for metadata in made if "distractors" in metadata]
    inside = [1 + metadata[_IN_TEXT] for metadata in made if _IN_TEXT in metadata and "cut" not in metadata]

    def mean(values: Sequence[int]) -> float | None:
        return sum(100 / value for value in values) / len(values) if values and len(values) == len(rows) else None

    count = sizes[0] if len(set(sizes)) == 1 else None
    return {"num_choices": count, "chance": mean(sizes), "chance_in_text": mean(inside)}


def by_depth(rows: Sequence[GradedSample], metric: str) -> list[dict[str, Any]]:
    """Returns scores by the depth of the needle, for samples with one: at each depth of a grid, else in fifths.

    Returns:
        ``from``, ``to`` (percent of the text), ``num_samples``, ``score`` and ``interval``; empty for tasks whose
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
    """Returns the 95 % interval of a mean score in percent; see `longlens.metrics.uncertainty.score_interval`."""
    both = score_interval(values)
    return None if both is None else (100 * both[0], 100 * both[1])


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: 100 * sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _latest_scores(
    path: Path, graded: Sequence[GradedSample]
) -> tuple[dict[str, dict[str, float]], dict[str, list[dict[str, str | None]]]]:
    """Returns the scores of the latest judge and NLI model by sample, and these models by batch."""
    known = list(read_judged(path))
    batches: dict[str, set[str]] = {}
    for row in graded:
        batches.setdefault(row.batch, set()).add(row.sample.id)
    scores: dict[str, dict[str, float]] = {}
    judges: dict[str, list[dict[str, str | None]]] = {}
    for name, ids in batches.items():
        lines = latest_lines(ids, known)
        for line in lines:
            scores.setdefault(line["id"], {}).update(line["scores"])
        keys = dict.fromkeys((line["by"], line.get("prompts")) for line in lines)
        judges[name] = [{"by": by, "prompts": prompts} for by, prompts in keys]
    return scores, judges


def latest_lines(ids: Collection[str], known: Sequence[Line]) -> list[Line]:
    """Returns the lines of these samples by the judge and by the NLI model that were run last.

    Args:
        ids: Samples of one task and length.
        known: All lines of a run, in file order.
    """
    mine = [line for line in known if line["id"] in ids]
    last = {line.get("prompts") is None: judge_key(line) for line in mine}
    return [line for line in mine if judge_key(line) in last.values()]


def judge_key(line: Line) -> JudgeKey:
    """Returns the scorer of a line: name and identity of the model, and the origin of the judge prompts."""
    return line["by"], line.get("model"), line.get("prompts")


def suite_averages(
    batches: Batches, graded: Sequence[GradedSample], *, threshold: float = ruler.THRESHOLD
) -> dict[str, Any]:
    """Computes the averages of the suites whose tasks the run contains.

    Args:
        batches: Scores of all batches.
        graded: Samples of the batches.
        threshold: Threshold of RULER's means, for the effective length.

    Returns:
        By suite: ``ruler`` as `longlens.tasks.ruler.summarize`; the others by length, 0 if the data fixes the length,
        because samples that are truncated to different lengths are different samples: ``helmet`` as
        `longlens.tasks.helmet.summarize`; ``longbench``, ``longbench_e`` and ``longbench_v2`` as in
        `longlens.tasks.longbench`. ``gaps`` of each lists what is missing. Several seeds of a task count as
        more samples of it.
    """
    found: dict[str, dict[int, dict[str, dict[str, Mapping[str, Any]]]]] = {}
    for name, batch in batches.items():
        if batch["score"] is not None:
            of_length = found.setdefault(batch["suite"], {}).setdefault(batch["length"] or 0, {})
            of_length.setdefault(batch["task"], {})[name] = batch
    averages: dict[str, Callable[[Tasks], Any]] = {
        "helmet": lambda tasks: asdict(helmet.summarize(_all_scores(tasks), allow_gaps=True)),
        "longbench": lambda tasks: asdict(longbench.summarize(_scores(tasks), allow_gaps=True)),
        "longbench_e": lambda tasks: _e(tasks, graded),
        "longbench_v2": lambda tasks: _v2(tasks, graded),
    }
    results: dict[str, Any] = {}
    if "ruler" in found:
        by_length = {length: _scores(tasks) for length, tasks in found["ruler"].items()}
        results["ruler"] = asdict(ruler.summarize(by_length, threshold=threshold, allow_gaps=True))
    for suite, average in averages.items():
        if suite in found:
            results[suite] = {str(length): average(tasks) for length, tasks in found[suite].items()}
    return results


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
    """Returns the mean of means, weighted by the given numbers of samples."""
    known = list(pairs)
    return sum(mean * count for mean, count in known) / sum(count for _, count in known)


def _e(tasks: Tasks, graded: Sequence[GradedSample]) -> dict[str, Any]:
    buckets: dict[str, dict[str, float | None]] = {}
    for task, own in tasks.items():
        rows = [row for row in graded if row.batch in own and row.scores]
        scores = [(row.scores or {})[row.task.metric] for row in rows]
        buckets[task] = longbench.bucket_means([row.sample.metadata for row in rows], scores)
    summaries = longbench.summarize_e(buckets, allow_gaps=True)
    return {bucket: asdict(summary) for bucket, summary in summaries.items()}


def _v2(tasks: Tasks, graded: Sequence[GradedSample]) -> dict[str, dict[str, float | None]]:
    names = {name for own in tasks.values() for name in own}
    rows = [row for row in graded if row.batch in names and row.scores]
    metadata = [row.sample.metadata for row in rows]
    return {
        name: longbench.summarize_v2(metadata, [(row.scores or {})[name] for row in rows])
        for name in ("accuracy", "compensated")
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedSample:
    """A sample and its scores.

    Attributes:
        sample: The sample; its prompt is empty if it was not requested, or not stored.
        task: Task of the sample.
        batch: Task, length and seed.
        prediction: The answer without reasoning; None in other modes, or if there is no answer.
        scores: Numbers from 0 to 1; None if there is no answer.
        is_truncated: Whether the answer reached its token limit.
        is_skipped: Whether the sample was skipped because of its length.
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
    """Extracts the answer from a model's output: the text after the reasoning, up to the first stop sequence.

    The answer is empty if reasoning starts and does not end. It is also empty if reasoning was requested and the output
    was truncated without an end of reasoning, because a chat template may open the reasoning itself.

    Args:
        output: Output of the model.
        stop: Stop sequences.
        is_truncated: Whether the output reached its token limit.
        thinks: Whether reasoning was requested.
        marks: Begin and end of reasoning, in addition to those of `longlens.reasoning.MARKS`.
    """
    answer = final_answer(output, marks=marks, must_end=thinks and is_truncated)
    for term in stop:
        answer = answer.partition(term)[0] if term else answer
    return answer


def grade_run(
    folder: Path,
    manifest: Mapping[str, Any],
    *,
    places: Mapping[str, Any] | None = None,
    with_prompts: bool = False,
) -> Iterator[GradedSample]:
    """Yields the samples of a run with the scores of their answers, in the order of the requests.

    Args:
        folder: Run directory.
        manifest: Its manifest, from `longlens.bench.store.read_manifest`.
        places: Directories with additional files that tasks need; see `task_of`.
        with_prompts: Whether to read the samples' own prompts, which judges may need and scores do not.
    """
    mode, marks = manifest["mode"], manifest.get("think_marks")
    answers: dict[tuple[str, str], dict[str, Any]] = {}
    for row in read_answers(folder, mode):
        answers.setdefault((row["key"], row["prompt_sha256"]), row)
    tasks: dict[str, Task] = {}
    for place, row in read_samples(folder):
        sample = stored_sample(row, place, with_prompt=with_prompts)
        if row["batch"] not in tasks:
            tasks[row["batch"]] = task_of(sample, places)
        made = {"sample": sample, "task": tasks[row["batch"]], "batch": row["batch"], "is_skipped": row["skipped"]}
        keys = [sample.id] if mode == "generate" else [f"{sample.id}#{n}" for n in range(len(row["continuations"]))]
        found = [answers[key, row["prompt_sha256"]] for key in keys if (key, row["prompt_sha256"]) in answers]
        if row["skipped"] or len(found) < max(1, len(keys)):
            yield GradedSample(**made)
        elif mode == "generate":
            text, is_truncated = found[0]["text"], found[0]["is_truncated"]
            thinks = manifest["think_tokens"] > 0
            prediction = answer_text(text, row["task_stop"], is_truncated=is_truncated, thinks=thinks, marks=marks)
            scores = _score(made["task"], sample, prediction, place)
            yield GradedSample(**made, prediction=prediction, scores=scores, is_truncated=is_truncated)
        else:
            yield _grade_logprobs(made, found, row["continuations"], mode)


def _score(task: Task, sample: Sample, prediction: str, place: str) -> dict[str, float]:
    """Returns the task's score; a sample from another program may lack metadata that the task needs."""
    with library_errors(f"{place} is not a sample of {task.name}", "pass a file of longlens bench build"):
        return task.score(sample, prediction)


def _grade_logprobs(
    made: dict[str, Any], answers: Sequence[Mapping[str, Any]], texts: Sequence[str], mode: str
) -> GradedSample:
    nll = -float(answers[0]["logprob"])
    if mode == "teacher-forced":
        return GradedSample(**made, scores={"teacher_forced": float(answers[0]["is_greedy"])}, nll=nll)
    logprobs = [float(answer["logprob"]) for answer in answers]
    by_byte = [logprob / len(text.encode()) for logprob, text in zip(logprobs, texts, strict=True)]
    scores = {"choice_accuracy": _first_is_largest(logprobs), "choice_accuracy_by_byte": _first_is_largest(by_byte)}
    return GradedSample(**made, scores=scores, nll=nll)


def _first_is_largest(values: Sequence[float]) -> float:
    """Returns 1 if the first value is larger than all others; a tie counts as wrong."""
    return float(all(values[0] > value for value in values[1:]))


def grade_predictions(samples: Iterable[Sample], path: Path, *, marks: Marks | None = None) -> list[GradedSample]:
    """Returns samples with the scores of a file of predictions.

    Args:
        samples: All samples of the benchmark.
        path: JSON Lines with ``id`` and ``prediction``, one for each sample.
        marks: Begin and end of reasoning, in addition to those of `longlens.reasoning.MARKS`.

    Raises:
        UserError: The file is damaged, or ids are missing, unknown, or occur twice.
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
            raise UserError(f"{place}: the id {shown_value(key)} occurs twice: keep one prediction per sample")
        if key not in asked:
            raise UserError(
                f"{place}: no sample has the id {shown_value(key)}: check that the predictions belong to these samples"
            )
        said[key] = text
    missing = [key for key in asked if key not in said]
    if missing:
        raise UserError(
            f"{shown(path)} has no prediction for {len(missing)} of {len(asked)} samples, such as "
            f"{shown_value(missing[0])}: add one for each, with an empty string if the model gave no answer"
        )
    tasks: dict[str, Task] = {}
    graded = []
    for sample in asked.values():
        batch = sample.id.rpartition("-")[0] or sample.id
        if batch not in tasks:
            tasks[batch] = task_of(sample)
        prediction = answer_text(said[sample.id], tasks[batch].stop, marks=marks)
        scores = _score(tasks[batch], sample, prediction, f"{shown(path)}, {shown_value(sample.id)}")
        graded.append(GradedSample(sample=sample, task=tasks[batch], batch=batch, prediction=prediction, scores=scores))
    return graded
