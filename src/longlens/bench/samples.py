"""Builds, reads and writes samples of several tasks and lengths, as JSON Lines.

A line contains all fields of a `longlens.tasks.Sample`. In a run directory, ``prompt`` is the exact text that the model
received; the line also has its hash, its number of tokens, the template, the requests, and a hash of all inputs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from longlens.bench.prompts import Prompt
from longlens.bench.selection import task_of
from longlens.bench.store import NUMBER, Row, check_fields, check_numbers, check_strings
from longlens.errors import UserError, shown, shown_value, system_errors
from longlens.files import parse_json, replacing
from longlens.runs.identity import canonical_sha256
from longlens.runs.jsonl import Line, read_at, read_lines
from longlens.tasks.base import Builder, Sample, Task
from longlens.tasks.haystack import NAMED
from longlens.tokenization import TextEncoder

_LOGGER = logging.getLogger(__name__)
UNKNOWN_SIZE = 8192
"""Assumed number of tokens of a sample if the data determines its length."""
_STEP = "pass a file of longlens bench build"
_METADATA: dict[str, Any] = {
    **{"task?": str, "settings?": dict, "seed?": int, "index?": int, "requested_length?": int, "cut?": dict},
    **{"depth?": NUMBER, "depths?": list, "distractors?": list, "distractors_in_text?": int},
    "data?": dict,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleBatch:
    """Samples of one task and length, built or read one at a time, by index.

    Attributes:
        name: Task, length and seed, as in the samples' ids.
        task: Task of the samples.
        ids: IDs of the samples.
        sample: Builds or reads a sample; None if it is skipped because of its length.
        recipe: Returns a hash of all inputs of a sample, without building the sample.
        order: Order in which samples are checked, with the sample that is most likely too long first.
        sizes: Approximate prompt lengths in tokens, known without building samples.
        own_tokens: Whether the tokenizer of the evaluated model counts the lengths.
        about: Metadata of skipped samples.
    """

    name: str
    task: Task
    ids: Sequence[str]
    sample: Callable[[int], Sample | None]
    recipe: Callable[[int], str]
    order: Sequence[int]
    sizes: Sequence[int]
    own_tokens: bool
    about: Mapping[str, Any] = field(default_factory=dict)

    def skipped_sample(self, at: int) -> Sample:
        """Returns a placeholder for a sample that was too long to build: only its id and its parameters."""
        about = {"task": self.task.name, "index": at, **self.about}
        return Sample(
            id=self.ids[at], prompt="", answer_prefix="", answers=[], answer_spans=[], length=0, metadata=about
        )


def task_batches(
    tasks: Iterable[Task],
    *,
    lengths: Sequence[int],
    samples: int | None,
    seed: int,
    tokenizer: Any,
    overlong: str | None = None,
    reserve: Callable[[Task], int] = lambda task: 0,
) -> list[SampleBatch]:
    """Returns the samples of each task at each length; no sample is built yet.

    Args:
        tasks: Tasks to build.
        lengths: Lengths in tokens; empty if settings or data fix the lengths.
        samples: Number of samples of each task and length; the benchmark's own number by default.
        seed: Random seed of the samples.
        tokenizer: Tokenizer that counts the lengths.
        overlong: Truncation policy; the task's own by default.
        reserve: Returns the tokens to reserve for a chat template.

    Raises:
        UserError: No sample of that length can be built, or the data is not available.
    """
    made_with = {"longlens": metadata.version("longlens"), "python": platform.python_version()}
    made_with["tokenizer_sha256"] = TextEncoder(tokenizer).sha256
    batches = []
    for task in tasks:
        options: dict[str, Any] = {"seed": seed, "overlong": overlong, "reserve": reserve(task)}
        inputs = {"task": task.name, "settings": _settings(task), "files": _files(task), **options, **made_with}
        for length in lengths or (None,):
            builder = Builder(task, length=length, samples=samples, tokenizer=tokenizer, **options)
            batches.append(
                SampleBatch(
                    name=builder.name,
                    task=task,
                    ids=[f"{builder.name}-{at}" for at in range(builder.samples)],
                    sample=builder.sample,
                    recipe=partial(_recipe, inputs | {"length": length}),
                    order=range(builder.samples),
                    sizes=[length or UNKNOWN_SIZE] * builder.samples,
                    own_tokens=True,
                    about={"seed": seed, "requested_length": length},
                )
            )
    return batches


def _recipe(inputs: Mapping[str, Any], at: int) -> str:
    return canonical_sha256({**inputs, "index": at})


def _settings(task: Any) -> dict[str, Any]:
    values = {one.name: getattr(task, one.name) for one in fields(task)}
    kinds = (str, int, float, tuple, list, type(None))
    return {name: value for name, value in values.items() if isinstance(value, kinds)}


def _files(task: Any) -> dict[str, str]:
    values = {name: getattr(task, name, None) for name in ("data_dir", "haystack")}
    return {name: files_sha256(Path(value)) for name, value in values.items() if value and value not in NAMED}


def files_sha256(top: Path) -> str:
    """Returns a hash of names, sizes and modification times of a file, or of all files of a directory.

    Raises:
        UserError: The files cannot be read.
    """
    with system_errors(top):
        paths = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        return canonical_sha256(
            [[os.fsencode(path).hex(), found.st_size, found.st_mtime_ns] for path in paths for found in [path.stat()]]
        )


def log_lengths(name: str, count: int, num_skipped: int, num_cut: int) -> None:
    """Logs how many samples of a batch were too long."""
    for number, what in ((num_skipped, "skipped"), (num_cut, "truncated")):
        if number:
            _LOGGER.info(f"{name}: {number} of {count} samples were too long and were {what}")


def write_samples(path: Path, batches: Iterable[SampleBatch]) -> dict[str, int]:
    """Writes samples as JSON Lines, atomically; one sample is in memory at a time.

    Returns:
        The number of samples written of each batch.

    Raises:
        UserError: A sample cannot be built, or the file cannot be written.
    """
    counts = {}
    with replacing(path) as file:
        for batch in batches:
            written = num_cut = 0
            for at in range(len(batch.ids)):
                sample = batch.sample(at)
                if sample is not None:
                    file.write(json.dumps(asdict(sample), ensure_ascii=True) + "\n")
                    written, num_cut = written + 1, num_cut + ("cut" in sample.metadata)
            counts[batch.name] = written
            log_lengths(batch.name, len(batch.ids), len(batch.ids) - written, num_cut)
    return counts


def read_sample_file(path: Path) -> list[Sample]:
    """Reads samples from JSON Lines, without their prompts, which scores do not need.

    Args:
        path: Output of `longlens bench build`, or of a run.

    Raises:
        UserError: The file does not exist, a line is not a sample, or two samples have the same id.
    """
    return [replace(sample, prompt="") for _, sample in _read_samples(path)]


def _read_samples(path: Path, *, of_runs: bool = True) -> Iterator[tuple[Line, Sample]]:
    ids: set[str] = set()
    for line in read_lines(path, step=_STEP):
        row = line.fields()
        if not of_runs and "prompt_sha256" in row:
            raise UserError(f"{shown(path)} has the prompts of a run, or none: pass a file of longlens bench build")
        sample = parse_sample(row, line.place)
        if sample.id in ids:
            raise UserError(f"{shown(path)}: the id {shown_value(sample.id)} occurs twice: sample ids must be unique")
        ids.add(sample.id)
        yield line, sample
    if not ids:
        raise UserError(f"{shown(path)} has no samples: expected the JSON Lines of longlens bench build")


def file_batches(path: Path) -> list[SampleBatch]:
    """Returns the samples of a file by task, length and seed. Checks all of them, and reads them again one at a time.

    Raises:
        UserError: The file does not exist or is of a run, a line is not a sample or has no task, or an id occurs twice.
    """
    groups: dict[str, tuple[Task, list[_Line]]] = {}
    for line, sample in _read_samples(path, of_runs=False):
        name = sample.id.rpartition("-")[0]
        if not re.fullmatch(r"\w[^/\\\0]{0,150}", name):  # the name becomes a file name in the run directory
            raise UserError(
                f"{shown(path)}: expected an id such as vt-4096-42-0, TASK-LENGTH-SEED-INDEX: {shown_value(sample.id)}"
            )
        if name not in groups:
            groups[name] = (task_of(sample), [])
        sha256 = canonical_sha256(line.value)
        groups[name][1].append(_Line(sample.id, line.start, line.place, sample.length, sha256))
    return [_file_batch(path, name, task, lines) for name, (task, lines) in groups.items()]


class _Line(NamedTuple):
    """Position and hash of a sample in a file."""

    id: str
    start: int
    place: str
    length: int
    sha256: str


def _file_batch(path: Path, name: str, task: Task, lines: Sequence[_Line]) -> SampleBatch:
    def sample(at: int) -> Sample:
        row = read_at(path, lines[at].start, step=_STEP)
        if canonical_sha256(row) != lines[at].sha256:
            raise UserError(f"{shown(path)} changed while it was read: run the same command again")
        return parse_sample(row, lines[at].place)

    return SampleBatch(
        name=name,
        task=task,
        ids=[line.id for line in lines],
        sample=sample,
        recipe=lambda at: lines[at].sha256,
        order=sorted(range(len(lines)), key=lambda at: -lines[at].length),
        sizes=[line.length for line in lines],
        own_tokens=False,
    )


def parse_sample(row: Mapping[str, Any], place: str, *, is_skipped: bool = False) -> Sample:
    """Parses a sample from its JSON object.

    Args:
        row: The object.
        place: Position of the object, for messages.
        is_skipped: Whether the sample was skipped because of its length; then it may have no answers.

    Raises:
        UserError: A field is missing or has the wrong type.
    """
    wanted = {"id": str, "prompt?": str, "answer_prefix": str, "length": int, "metadata": dict}
    check_fields(row, place, wanted, step=_STEP)
    if "prompt" not in row:
        raise UserError(f"{place}: the field prompt is missing: {_STEP}")
    made = check_fields(row["metadata"], f"{place}: metadata", _METADATA, step=_STEP)
    check_numbers(made.get("depths") or [], f"{place}: metadata.depths")
    check_strings(made.get("distractors") or [], f"{place}: metadata.distractors")
    answers = check_strings(row.get("answers"), f"{place}: answers")
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


def stored_sample(row: Mapping[str, Any], place: str, *, with_prompt: bool) -> Sample:
    """Parses a sample from its line in a run directory.

    Args:
        row: The line, as `sample_row` writes it.
        place: Position of the line, for messages.
        with_prompt: Whether to include the sample's own prompt, to which spans refer; otherwise it is empty.

    Raises:
        UserError: A field is missing or has the wrong type.
    """
    text, span = row.get("prompt"), row.get("own_prompt_span")
    own = None
    if with_prompt and isinstance(text, str) and span is not None:
        start, end = _span(span, f"{place}: own_prompt_span")
        own = _content(text, is_messages=bool(row.get("is_messages")), place=place)[start:end]
    return parse_sample({**row, "prompt": own}, place, is_skipped=row.get("skipped") is True)


def _content(prompt: str, *, is_messages: bool, place: str) -> str:
    if not is_messages:
        return prompt
    messages = parse_json(prompt, f"{place}: prompt", _STEP)
    try:
        return str(messages[0]["content"])
    except (LookupError, TypeError) as error:
        raise UserError(f"{place}: prompt is {shown_value(messages)}, expected messages: {_STEP}") from error


def sample_row(prompt: Prompt, batch: SampleBatch, template: str, *, recipe: str, keep_prompt: bool) -> Row:
    """Returns the stored line of a sample: the exact prompt, the span of the sample's own prompt, and the requests."""
    row = asdict(prompt.sample)
    row["prompt"] = prompt.text if keep_prompt else None
    content = _content(prompt.text, is_messages=prompt.is_messages, place="")
    at = content.find(prompt.sample.prompt)
    request = prompt.requests[0] if prompt.requests else None
    return row | {
        "batch": batch.name,
        "task": batch.task.name,
        "recipe": recipe,
        "template": template,
        "prompt_sha256": prompt.sha256,
        "is_messages": prompt.is_messages,
        # None if the template changes the text of the prompt.
        "own_prompt_span": [at, at + len(prompt.sample.prompt)] if at >= 0 else None,
        "text_sha256": hashlib.sha256(prompt.text.encode()).hexdigest(),
        "prompt_tokens": prompt.num_tokens,
        "skipped": prompt.skipped,
        "continuations": [r.continuation for r in prompt.requests if r.continuation is not None],
        "max_new_tokens": request.max_new_tokens if request else 0,
        "stop": list(request.stop) if request else [],
        "task_stop": list(batch.task.stop),
    }
