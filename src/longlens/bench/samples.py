"""Samples of several tasks and lengths, and their JSON Lines.

A line has all of a `longlens.tasks.Sample`; in a run's folder ``prompt`` is the exact text that the model got instead,
with its hash, its tokens, the template and what was asked about it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longlens.bench.prompts import Prompted
from longlens.bench.store import read_lines
from longlens.corpus.document import shown
from longlens.errors import UserError
from longlens.files import replacing
from longlens.tasks import get_task, task_settings
from longlens.tasks.base import Sample, Task

_FIELDS = {"id": str, "prompt": str, "answer_prefix": str, "answers": list, "length": int, "metadata": dict}


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples of one task and length.

    Attributes:
        name: Task, length and seed, as in the samples' ids.
        task: Their task.
        samples: Those that were built.
        asked_for: How many were wanted.
        skipped: How many of them were left out for their length.
    """

    name: str
    task: Task
    samples: Sequence[Sample]
    asked_for: int
    skipped: int


def build_batches(
    tasks: Iterable[Task],
    *,
    lengths: Sequence[int],
    samples: int | None,
    seed: int,
    tokenizer: Any,
    overlong: str | None = None,
    reserve: Callable[[Task], int] = lambda task: 0,
) -> list[Batch]:
    """Samples of each task at each length.

    Args:
        tasks: What is built.
        lengths: In tokens; none where settings or data fix the lengths.
        samples: Of each task and length; the benchmark's own number unless given.
        seed: Of the samples.
        tokenizer: Counts.
        overlong: As in `Task.build`.
        reserve: Tokens that are left for a chat template.

    Raises:
        UserError: As `Task.build` says.
    """
    batches = []
    sizes: Sequence[int | None] = lengths or (None,)
    for task in tasks:
        wanted = task.default_samples if samples is None else samples
        for length in sizes:
            built = task.build(
                length=length,
                samples=samples,
                seed=seed,
                tokenizer=tokenizer,
                reserve=reserve(task),
                overlong=overlong,
            )
            name = built[0].id.rpartition("-")[0] if built else f"{task.name}-{length}-{seed}"
            skipped = wanted - len(built)
            batches.append(Batch(name=name, task=task, samples=built, asked_for=wanted, skipped=skipped))
    return batches


def make_tasks(
    names: Iterable[str], settings: Mapping[str, Any], shared: Mapping[str, Any] | None = None
) -> list[Task]:
    """Tasks, each with those of the settings that are its own.

    Args:
        names: Of the tasks.
        settings: Each of them has to be one of a task at least.
        shared: Settings that no task needs to have.

    Raises:
        UserError: A setting is of none of them.
    """
    chosen = list(names)
    for setting in settings:
        if chosen and not any(setting in task_settings(name) for name in chosen):
            known = sorted({own for name in chosen for own in task_settings(name)})
            raise UserError(f"none of {', '.join(chosen)} has a setting {setting!r}: they have {', '.join(known)}")
    given = {**(shared or {}), **settings}
    return [
        get_task(name, **{key: value for key, value in given.items() if key in task_settings(name)}) for name in chosen
    ]


def task_of(sample: Sample) -> Task:
    """The task that scores a sample, from its metadata: no files are needed for that.

    Raises:
        UserError: It names no task.
    """
    name = sample.metadata.get("task")
    if not isinstance(name, str):
        raise UserError(f"sample {sample.id!r} names no task in its metadata: give a file of longlens bench build")
    own = task_settings(name)
    plain = {key: value for key, value in sample.metadata.get("settings", {}).items() if key in own}
    return get_task(name, **plain)


def write_samples(path: Path, batches: Iterable[Batch]) -> int:
    """Writes samples as JSON Lines, whole or not at all; returns how many."""
    count = 0
    with replacing(path) as file:
        for batch in batches:
            for sample in batch.samples:
                file.write(json.dumps(asdict(sample), ensure_ascii=True) + "\n")
                count += 1
    return count


def read_sample_file(path: Path) -> list[Sample]:
    """Samples from JSON Lines.

    Raises:
        UserError: There is no such file, a line is no sample, or two have one id.
    """
    samples: dict[str, Sample] = {}
    for number, row in enumerate(read_lines(path), start=1):
        sample = as_sample(row, f"{shown(path)}, sample {number}")
        if sample.id in samples:
            raise UserError(f"{shown(path)}: the id {sample.id!r} is there twice: each sample needs one of its own")
        samples[sample.id] = sample
    if not samples:
        raise UserError(f"{shown(path)} has no samples: expected the JSON Lines of longlens bench build")
    return list(samples.values())


def file_batches(path: Path) -> list[Batch]:
    """The samples of a file by task, length and seed.

    Raises:
        UserError: As `read_sample_file` and `task_of`.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in read_sample_file(path):
        groups.setdefault(sample.id.rpartition("-")[0] or sample.id, []).append(sample)
    return [
        Batch(name=name, task=task_of(samples[0]), samples=samples, asked_for=len(samples), skipped=0)
        for name, samples in groups.items()
    ]


def as_sample(row: Mapping[str, Any], place: str) -> Sample:
    """A sample from its JSON object.

    Raises:
        UserError: A field is missing or of another type.
    """
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind) and not (name == "prompt" and row.get(name, "") is None):
            raise UserError(f"{place}: no {kind.__name__} {name!r}; expected a sample of longlens bench build")
    spans = row.get("answer_spans") or []
    context = row.get("context_span")
    return Sample(
        id=row["id"],
        prompt=row["prompt"] or "",
        answer_prefix=row["answer_prefix"],
        answers=list(row["answers"]),
        answer_spans=[(int(start), int(end)) for start, end in spans],
        length=row["length"],
        context_span=None if context is None else (int(context[0]), int(context[1])),
        metadata=dict(row["metadata"]),
    )


def sample_row(question: Prompted, batch: Batch, template: str, *, keep_prompt: bool) -> dict[str, Any]:
    """What a run keeps of a sample: the exact prompt instead of the sample's own, and what is asked about it."""
    row = asdict(question.sample)
    row["prompt"] = question.prompt if keep_prompt else None
    request = question.requests[0] if question.requests else None
    return row | {
        "batch": batch.name,
        "task": batch.task.name,
        "template": template,
        "prompt_sha256": question.sha256,
        "text_sha256": hashlib.sha256(question.prompt.encode()).hexdigest(),
        "prompt_tokens": question.prompt_tokens,
        "skipped": question.skipped,
        "continuations": [r.continuation for r in question.requests if r.continuation is not None],
        "max_new_tokens": request.max_new_tokens if request else 0,
        "stop": list(request.stop) if request else [],
        "task_stop": list(batch.task.stop),
    }
