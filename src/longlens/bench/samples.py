"""Samples of several tasks and lengths, and their JSON Lines.

A line has all of a `longlens.tasks.Sample`; in a run's folder ``prompt`` is the exact text that the model got instead,
with its hash, its tokens, the template, what was asked about it, and a hash of all that it was made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from longlens.bench.prompts import Prompted
from longlens.bench.store import Row, as_numbers, as_texts, checked
from longlens.errors import UserError, shown, shown_value, system_errors
from longlens.files import parse_json, replacing
from longlens.runs.jsonl import read_lines
from longlens.tasks import get_task, task_settings
from longlens.tasks.base import Builder, Sample, Task
from longlens.tasks.data import check_files
from longlens.tasks.haystack import NAMED
from longlens.tokenization import TextEncoder

_STEP = "give a file of longlens bench build"
_METADATA: dict[str, Any] = {
    **{"task?": str, "settings?": dict, "seed?": int, "index?": int, "requested_length?": int, "cut?": dict},
    **{"depth?": (int, float), "depths?": list, "distractors?": list, "data?": dict},
}


class Batch(Protocol):
    """Samples of one task and length, built or read one at a time.

    Attributes:
        name: Task, length and seed, as in the samples' ids.
        task: Their task.
        own_tokens: Whether lengths are counted by the tokenizer of the model that is asked.
    """

    name: str
    task: Task
    own_tokens: bool

    def __len__(self) -> int:
        """How many there are."""

    def id(self, at: int) -> str:
        """Of a sample."""

    def recipe(self, at: int) -> str:
        """Hash of all that a sample is made of, for which it need not be made."""

    def sample(self, at: int) -> Sample | None:
        """A sample; None where it is left out for its length.

        Raises:
            UserError: It cannot be made.
        """

    def first(self) -> Sequence[int]:
        """All samples in the order in which they are checked: the one that is the likeliest too long first."""


class TaskBatch:
    """A batch that a task builds; as `Batch`.

    Args:
        task: The task.
        builder: Builds its samples.
        made_of: All that decides them, as JSON.
    """

    own_tokens = True

    def __init__(self, task: Task, builder: Builder, made_of: Mapping[str, Any]) -> None:
        self.task, self.name = task, builder.name
        self.sample = builder.sample
        self.seed, self.length = made_of["seed"], made_of["length"]
        self._samples, self._made_of = builder.samples, dict(made_of)

    def __len__(self) -> int:
        """How many there are."""
        return self._samples

    def id(self, at: int) -> str:
        """Of a sample."""
        return f"{self.name}-{at}"

    def recipe(self, at: int) -> str:
        """As in `Batch`."""
        return _sha256(self._made_of | {"index": at})

    def first(self) -> Sequence[int]:
        """As in `Batch`."""
        return range(len(self))


class FileBatch:
    """A batch of a file, which stays there; as `Batch`.

    Args:
        path: The file.
        name: Of the batch.
        task: Its task.
        lines: Where the samples are.
    """

    own_tokens = False

    def __init__(self, path: Path, name: str, task: Task, lines: Sequence[_Line]) -> None:
        self.name, self.task = name, task
        self._path, self._lines = path, lines

    def __len__(self) -> int:
        """How many there are."""
        return len(self._lines)

    def id(self, at: int) -> str:
        """Of a sample."""
        return self._lines[at].id

    def recipe(self, at: int) -> str:
        """As in `Batch`."""
        return self._lines[at].sha256

    def sample(self, at: int) -> Sample:
        """As in `Batch`."""
        line = self._lines[at]
        with system_errors(self._path), self._path.open("rb") as file:
            file.seek(line.start)
            row = parse_json(file.readline(), shown(self._path), _STEP)
        if _sha256(row) != line.sha256:
            raise UserError(f"{shown(self._path)} has changed while it was read: run the same command again")
        return as_sample(row, line.place)

    def first(self) -> Sequence[int]:
        """As in `Batch`."""
        return sorted(range(len(self)), key=lambda at: -self._lines[at].length)


class _Line(NamedTuple):
    id: str
    start: int
    place: str
    length: int
    sha256: str


def task_batches(
    tasks: Iterable[Task],
    *,
    lengths: Sequence[int],
    samples: int | None,
    seed: int,
    tokenizer: Any,
    overlong: str | None = None,
    reserve: Callable[[Task], int] = lambda task: 0,
) -> list[TaskBatch]:
    """Samples of each task at each length; none of them is built yet.

    Args:
        tasks: What is built.
        lengths: In tokens; none where settings or data fix the lengths.
        samples: Of each task and length; the benchmark's own number unless given.
        seed: Of the samples.
        tokenizer: Counts.
        overlong: As in `Task.build`.
        reserve: Tokens that are left for a chat template.

    Raises:
        UserError: As `longlens.tasks.base.Builder` says.
    """
    counted_by = TextEncoder(tokenizer).sha256
    batches = []
    for task in tasks:
        made_of = {"task": task.name, "settings": _settings(task), "files": _files(task), "seed": seed}
        reserved = reserve(task)
        made_of |= {"tokenizer_sha256": counted_by, "overlong": overlong, "reserve": reserved}
        made_of |= {"longlens": metadata.version("longlens"), "python": platform.python_version()}
        for length in lengths or (None,):
            builder = Builder(
                task,
                length=length,
                samples=samples,
                seed=seed,
                tokenizer=tokenizer,
                reserve=reserved,
                overlong=overlong,
            )
            batches.append(TaskBatch(task, builder, made_of | {"length": length}))
    return batches


def _settings(task: Any) -> dict[str, Any]:
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    kinds = (str, int, float, tuple, list, type(None))
    return {name: value for name, value in values.items() if isinstance(value, kinds)}


def _files(task: Any) -> dict[str, str]:
    values = {name: getattr(task, name, None) for name in ("data_dir", "haystack")}
    return {name: files_sha256(Path(value)) for name, value in values.items() if value and value not in NAMED}


def files_sha256(top: Path) -> str:
    """Of names, sizes and times of a file, or of all files of a folder: where it is the same, they have not changed.

    Raises:
        UserError: They cannot be read.
    """
    with system_errors(top):
        paths = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        return _sha256(
            [[os.fsencode(path).hex(), found.st_size, found.st_mtime_ns] for path in paths for found in [path.stat()]]
        )


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def left_out(batch: Batch, at: int) -> Sample:
    """In the place of a sample that was too long to be built: nothing but its id and what was asked for."""
    made: dict[str, Any] = {"task": batch.task.name, "index": at}
    if isinstance(batch, TaskBatch):
        made |= {"seed": batch.seed, "requested_length": batch.length}
    return Sample(id=batch.id(at), prompt="", answer_prefix="", answers=[], answer_spans=[], length=0, metadata=made)


def too_long(name: str, count: int, num_skipped: int, num_cut: int) -> list[str]:
    """Lines that say how many samples of a batch were too long."""
    counts = ((num_skipped, "left out"), (num_cut, "shortened"))
    return [f"{name}: {n} of {count} samples were too long and are {what}" for n, what in counts if n]


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
        raise UserError(f"sample {shown_value(sample.id)} names no task in its metadata: {_STEP}")
    own = task_settings(name)
    given = {**(sample.metadata.get("settings") or {}), **(places or {})}
    return get_task(name, **{key: value for key, value in given.items() if key in own})


def write_samples(path: Path, batches: Iterable[Batch], told: Callable[[str], None]) -> dict[str, int]:
    """Writes samples as JSON Lines, whole or not at all; one sample is in memory at a time.

    Args:
        path: The file.
        batches: What is written.
        told: Takes lines about samples that were too long.

    Returns:
        How many samples of each batch were written.

    Raises:
        UserError: A sample cannot be built, or the file cannot be written.
    """
    counts = {}
    with replacing(path) as file:
        for batch in batches:
            written = num_cut = 0
            for at in range(len(batch)):
                sample = batch.sample(at)
                if sample is not None:
                    file.write(json.dumps(asdict(sample), ensure_ascii=True) + "\n")
                    written, num_cut = written + 1, num_cut + ("cut" in sample.metadata)
            counts[batch.name] = written
            for line in too_long(batch.name, len(batch), len(batch) - written, num_cut):
                told(line)
    return counts


def read_sample_file(path: Path) -> list[Sample]:
    """Samples from JSON Lines, without their prompts, which scores do not need.

    Args:
        path: Of `longlens bench build`, or of a run.

    Raises:
        UserError: There is no such file, a line is no sample, or two have one id.
    """
    samples: dict[str, Sample] = {}
    for line in read_lines(path, step=_STEP):
        sample = as_sample(line.fields(), line.place)
        _check_new(path, sample.id, samples)
        samples[sample.id] = replace(sample, prompt="")
    if not samples:
        raise _no_samples(path)
    return list(samples.values())


def _check_new(path: Path, name: str, known: Mapping[str, Any]) -> None:
    if name in known:
        raise UserError(f"{shown(path)}: the id {shown_value(name)} is there twice: each sample needs one of its own")


def _no_samples(path: Path) -> UserError:
    return UserError(f"{shown(path)} has no samples: expected the JSON Lines of longlens bench build")


def file_batches(path: Path) -> list[FileBatch]:
    """The samples of a file by task, length and seed. All of them are checked here, and read again one at a time.

    Raises:
        UserError: As `read_sample_file` and `task_of`; or the file is of a run.
    """
    groups: dict[str, tuple[Task, dict[str, _Line]]] = {}
    for line in read_lines(path, step=_STEP):
        row = line.fields()
        if "prompt_sha256" in row:
            raise UserError(
                f"{shown(path)} has the exact prompts of a run, or none: give a file of longlens bench build"
            )
        sample = as_sample(row, line.place)
        name = sample.id.rpartition("-")[0]
        if not re.fullmatch(r"\w[^/\\\0]{0,150}", name):  # a run names files so
            raise UserError(
                f"{shown(path)}: expected an id such as vt-4096-42-0, TASK-LENGTH-SEED-INDEX: {shown_value(sample.id)}"
            )
        if name not in groups:
            groups[name] = (task_of(sample), {})
        _check_new(path, sample.id, groups[name][1])
        groups[name][1][sample.id] = _Line(sample.id, line.start, line.place, sample.length, _sha256(row))
    if not groups:
        raise _no_samples(path)
    return [FileBatch(path, name, task, list(lines.values())) for name, (task, lines) in groups.items()]


def as_sample(row: Mapping[str, Any], place: str, *, is_skipped: bool = False) -> Sample:
    """A sample from its JSON object.

    Args:
        row: The object.
        place: Where it is, for messages.
        is_skipped: Whether it was left out for its length, and may have no answers.

    Raises:
        UserError: A field is missing or of another type.
    """
    checked(row, place, {"id": str, "prompt?": str, "answer_prefix": str, "length": int, "metadata": dict}, _STEP)
    if "prompt" not in row:
        raise UserError(f"{place}: there is no prompt: {_STEP}")
    made = checked(row["metadata"], f"{place}: metadata", _METADATA, _STEP)
    as_numbers(made.get("depths") or [], f"{place}: metadata.depths")
    as_texts(made.get("distractors") or [], f"{place}: metadata.distractors")
    answers = as_texts(row.get("answers"), f"{place}: answers")
    if not answers and not is_skipped:
        raise UserError(f"{place}: answers is empty, expected at least one right answer: {_STEP}")
    spans, context = row.get("answer_spans") or [], row.get("context_span")
    if not isinstance(spans, list):
        raise UserError(f"{place}: answer_spans is {shown_value(spans)}, expected a list: {_STEP}")
    return Sample(
        id=row["id"],
        prompt=row["prompt"] or "",
        answer_prefix=row["answer_prefix"],
        answers=list(answers),
        answer_spans=[_span(span, f"{place}: answer_spans") for span in spans],
        length=row["length"],
        context_span=None if context is None else _span(context, f"{place}: context_span"),
        metadata=dict(made),
    )


def _span(value: Any, place: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(end) is int for end in value):
        raise UserError(f"{place}: {shown_value(value)}, expected [start, end] in characters: {_STEP}")
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
        own = _content(text, is_messages=bool(row.get("is_messages")), place=place)[start:end]
    return as_sample({**row, "prompt": own}, place, is_skipped=row.get("skipped") is True)


def _content(prompt: str, *, is_messages: bool, place: str) -> str:
    if not is_messages:
        return prompt
    messages = parse_json(prompt, f"{place}: prompt", _STEP)
    try:
        return str(messages[0]["content"])
    except (LookupError, TypeError) as error:
        raise UserError(f"{place}: prompt is {shown_value(messages)}, expected messages: {_STEP}") from error


def sample_row(question: Prompted, batch: Batch, template: str, *, recipe: str, keep_prompt: bool) -> Row:
    """What a run keeps of a sample: the exact prompt, where the sample's own is in it, and what is asked about it."""
    row = asdict(question.sample)
    row["prompt"] = question.prompt if keep_prompt else None
    content = _content(question.prompt, is_messages=question.is_messages, place="")
    at = content.find(question.sample.prompt)
    request = question.requests[0] if question.requests else None
    return row | {
        "batch": batch.name,
        "task": batch.task.name,
        "recipe": recipe,
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
