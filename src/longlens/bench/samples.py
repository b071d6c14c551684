"""Samples of several tasks and lengths, and their JSON Lines.

A line has all of a `longlens.tasks.Sample`; in a run's folder ``prompt`` is the exact text that the model got instead,
with its hash, its tokens, the template and what was asked about it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longlens.bench.prompts import Prompted
from longlens.bench.store import read_lines
from longlens.errors import UserError, shown
from longlens.files import replacing
from longlens.tasks import get_task, task_settings
from longlens.tasks.base import Sample, Task
from longlens.tasks.data import check_files

_FIELDS = {"id": str, "prompt": str, "answer_prefix": str, "answers": list, "length": int, "metadata": dict}


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples of one task and length.

    Attributes:
        name: Task, length and seed, as in the samples' ids.
        task: Their task.
        samples: Those that were built.
        left_out: In the places of those that were too long to be built, with nothing in them.
    """

    name: str
    task: Task
    samples: Sequence[Sample]
    left_out: Sequence[Sample] = ()

    def too_long(self, questions: Sequence[Prompted] = ()) -> list[str]:
        """Lines that say how many samples were too long, of those that were built or of those that are asked."""
        count = len(self.samples) + len(self.left_out)
        skipped = len(self.left_out) + sum(question.skipped for question in questions)
        cut = sum("cut" in one.metadata for one in [question.sample for question in questions] or self.samples)
        counts = ((skipped, "left out"), (cut, "shortened"))
        return [f"{self.name}: {n} of {count} samples were too long and are {what}" for n, what in counts if n]


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
            made = {"task": task.name, "seed": seed, "requested_length": length}
            gone = sorted(set(range(wanted)) - {sample.metadata["index"] for sample in built})
            left_out = [_nothing(f"{name}-{index}", made | {"index": index}) for index in gone]
            batches.append(Batch(name=name, task=task, samples=built, left_out=left_out))
    return batches


def _nothing(name: str, metadata: dict[str, Any]) -> Sample:
    return Sample(id=name, prompt="", answer_prefix="", answers=[], answer_spans=[], length=0, metadata=metadata)


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
    check_settings(chosen, settings)
    given = {**(shared or {}), **settings}
    tasks = [
        get_task(name, **{key: value for key, value in given.items() if key in task_settings(name)}) for name in chosen
    ]
    check_files(tasks)
    return tasks


def check_settings(names: Iterable[str], settings: Iterable[str]) -> None:
    """Checks that each setting is one of a task at least.

    Raises:
        UserError: One is of none of them.
    """
    chosen = list(names)
    for setting in settings:
        if chosen and not any(setting in task_settings(name) for name in chosen):
            known = sorted({own for name in chosen for own in task_settings(name)})
            raise UserError(f"none of {', '.join(chosen)} has a setting {setting!r}: they have {', '.join(known)}")


def task_of(sample: Sample, places: Mapping[str, Any] | None = None) -> Task:
    """The task that scores a sample, from its metadata: no files are needed for that, unless a judge needs some.

    Args:
        sample: The sample.
        places: Where files are, for the tasks that have such a setting; samples do not say.

    Raises:
        UserError: It names no task.
    """
    name = sample.metadata.get("task")
    if not isinstance(name, str):
        raise UserError(f"sample {sample.id!r} names no task in its metadata: give a file of longlens bench build")
    own = task_settings(name)
    given = {**sample.metadata.get("settings", {}), **(places or {})}
    return get_task(name, **{key: value for key, value in given.items() if key in own})


def write_samples(path: Path, batches: Iterable[Batch]) -> int:
    """Writes samples as JSON Lines, whole or not at all; returns how many."""
    count = 0
    with replacing(path) as file:
        for batch in batches:
            for sample in batch.samples:
                file.write(json.dumps(asdict(sample), ensure_ascii=True) + "\n")
                count += 1
    return count


def read_sample_file(path: Path, *, to_ask: bool = False) -> list[Sample]:
    """Samples from JSON Lines.

    Args:
        path: Of `longlens bench build`, or, where they are not asked, of a run.
        to_ask: Whether a model is to be asked them.

    Raises:
        UserError: There is no such file, a line is no sample, or two have one id.
    """
    samples: dict[str, Sample] = {}
    for number, row in enumerate(read_lines(path), start=1):
        if to_ask and "prompt_sha256" in row:
            raise UserError(
                f"{shown(path)} has the exact prompts of a run, or none: give a file of longlens bench build"
            )
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
    for sample in read_sample_file(path, to_ask=True):
        name = sample.id.rpartition("-")[0]
        if not re.fullmatch(r"\w[^/\\\0]{0,150}", name):  # a run names files so
            raise UserError(
                f"{shown(path)}: expected an id such as vt-4096-42-0, TASK-LENGTH-SEED-INDEX: {sample.id!r}"
            )
        groups.setdefault(name, []).append(sample)
    return [Batch(name=name, task=task_of(samples[0]), samples=samples) for name, samples in groups.items()]


def as_sample(row: Mapping[str, Any], place: str) -> Sample:
    """A sample from its JSON object.

    Raises:
        UserError: A field is missing or of another type.
    """
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind) and not (name == "prompt" and row.get(name, "") is None):
            raise UserError(f"{place}: no {kind.__name__} {name!r}; expected a sample of longlens bench build")
    spans, context = row.get("answer_spans") or [], row.get("context_span")
    if not isinstance(spans, list):
        raise UserError(f"{place}: answer_spans is no list; expected a sample of longlens bench build")
    if not all(isinstance(answer, str) for answer in row["answers"]):
        raise UserError(f"{place}: answers that are no texts; expected a sample of longlens bench build")
    return Sample(
        id=row["id"],
        prompt=row["prompt"] or "",
        answer_prefix=row["answer_prefix"],
        answers=list(row["answers"]),
        answer_spans=[_span(span, f"{place}: answer_spans") for span in spans],
        length=row["length"],
        context_span=None if context is None else _span(context, f"{place}: context_span"),
        metadata=dict(row["metadata"]),
    )


def _span(value: Any, place: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(end, int) for end in value):
        raise UserError(f"{place}: expected [start, end] in characters, as a sample of longlens bench build has")
    return value[0], value[1]


def run_sample(row: Mapping[str, Any], place: str, *, with_prompt: bool) -> Sample:
    """A sample from the line that a run keeps of it.

    Args:
        row: The line, as `sample_row` makes it.
        place: Where it is, for messages.
        with_prompt: Whether its own prompt is wanted, which spans count in; without it, it is empty.

    Raises:
        UserError: A field is missing or of another type.
    """
    text, span = row.get("prompt"), row.get("own_prompt_span")
    own = None
    if with_prompt and isinstance(text, str) and span is not None:
        start, end = _span(span, f"{place}: own_prompt_span")
        own = _content(text, is_messages=bool(row.get("is_messages")))[start:end]
    return as_sample({**row, "prompt": own}, place)


def _content(prompt: str, *, is_messages: bool) -> str:
    return str(json.loads(prompt)[0]["content"]) if is_messages else prompt


def sample_row(question: Prompted, batch: Batch, template: str, *, keep_prompt: bool) -> dict[str, Any]:
    """What a run keeps of a sample: the exact prompt, where the sample's own is in it, and what is asked about it."""
    row = asdict(question.sample)
    row["prompt"] = question.prompt if keep_prompt else None
    at = _content(question.prompt, is_messages=question.is_messages).find(question.sample.prompt)
    request = question.requests[0] if question.requests else None
    return row | {
        "batch": batch.name,
        "task": batch.task.name,
        "template": template,
        "prompt_sha256": question.sha256,
        "is_messages": question.is_messages,
        # A template that changes what it is given leaves no such place.
        "own_prompt_span": [at, at + len(question.sample.prompt)] if at >= 0 else None,
        "text_sha256": hashlib.sha256(question.prompt.encode()).hexdigest(),
        "prompt_tokens": question.prompt_tokens,
        "skipped": question.skipped,
        "continuations": [r.continuation for r in question.requests if r.continuation is not None],
        "max_new_tokens": request.max_new_tokens if request else 0,
        "stop": list(request.stop) if request else [],
        "task_stop": list(batch.task.stop),
    }
