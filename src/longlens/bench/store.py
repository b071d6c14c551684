"""Stores a benchmark run in a directory: what was requested, and the answers, written as they arrive.

::

    RUN/manifest.json                      the model and the prompt settings; other ones are rejected
    RUN/samples/TASK-LENGTH-SEED.jsonl     a line per sample: id, exact prompt, tokens, what is scored; appended before
                                           the request is sent; other ranks write to samples/rank-R/
    RUN/answers/part-….jsonl               a line per answer, appended as it arrives
    RUN/harness/part-….jsonl               the same for tasks of lm-evaluation-harness, which have their own samples
    RUN/judged/part-….jsonl                a line per sample that a judge or an NLI model scored
    RUN/results.json                       the results, which can be recomputed from the answers at any time

An incomplete last line, after a killed run or on a full disk, is ignored. A part belongs to one process and is named
``part-RANK-TIME-UUID``, so that the parts of a process sort by their start time: if there are several results for the
same request, the last one counts.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from longlens.bench.prompts import PromptSettings
from longlens.errors import UserError, shown, shown_value
from longlens.files import cannot_write, write_json
from longlens.reasoning import Marks
from longlens.runs.folder import (
    BY_WEIGHTS,
    MANIFEST,
    LockedFolder,
    differences,
    refuse_other,
    warn_by_weights,
    warn_of_versions,
)
from longlens.runs.folder import read_manifest as read_run_manifest
from longlens.runs.identity import model_differences, two_models
from longlens.runs.jsonl import append_line, read_at, read_lines

SCHEMA_VERSION = 1
RESULTS = "results.json"
FOLDERS = ("samples", "answers", "harness", "judged")
IDENTITY = tuple(field.name for field in fields(PromptSettings))
"""How a model is queried. With ``engine``, these fields identify a run directory; results with other values are not
comparable.
"""
SAMPLE = ("prompt_sha256", "answers", "max_new_tokens", "stop")
"""What identifies a sample, in addition to the settings of its task: answers and scores belong to these values."""
Row = dict[str, Any]
Write = Callable[[Mapping[str, Any]], None]
NUMBER = (int, float)
JSON_NAMES = {str: "string", dict: "object", int: "integer"}
_RUN_STEP = "use another folder, or run the benchmark again in a new one"


class StoredSample(NamedTuple):
    """A sample in the run directory, without its text.

    Attributes:
        path: The file.
        start: Offset of its line.
        recipe: Hash of all inputs; empty in runs from before version 0.2.
        identity: Its identity, see `sample_identity`.
        keys: Keys of its requests.
        prompt_sha256: SHA-256 of its exact prompt and continuations.
        is_skipped: Whether it was skipped because of its length.
        is_cut: Whether it was truncated.
        data: Hashes of data and haystack.
    """

    path: Path
    start: int
    recipe: str
    identity: list[Any]
    keys: tuple[str, ...]
    prompt_sha256: str
    is_skipped: bool
    is_cut: bool
    data: dict[str, Any]

    def read(self) -> Row:
        """Reads the complete row.

        Raises:
            UserError: The file has changed since it was indexed.
        """
        row = read_at(self.path, self.start, step=_RUN_STEP)
        if not isinstance(row, dict) or sample_identity(row) != self.identity:
            raise UserError(f"{shown(self.path)} changed while it was read: run the same command again")
        return row


class BenchRun:
    """A run directory that answers are written to; each part is written by one process.

    The directory is locked immediately. The manifest is written with the first sample or answer, so that a run that
    fails earlier leaves no directory.

    Args:
        folder: A new directory, or one of the same run.
        manifest: Identity of the run; ``engine`` and `IDENTITY` must agree with the existing manifest.
        rank: Rank of this process; only rank 0 writes manifest and results.

    Raises:
        UserError: The directory contains something else or another run, or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any], *, rank: int = 0) -> None:
        self.path, self.rank = Path(folder), rank
        self.manifest = dict(manifest)
        self._parts: dict[str, Write] = {}
        self._is_begun = self._is_compared = False
        self._held = LockedFolder(
            self.path,
            "benchmark run",
            own=FOLDERS,
            doing="running a benchmark in",
            example="run",
            rank=rank,
        )
        try:
            self.check()
        except BaseException:
            self.release()
            raise

    @property
    def is_begun(self) -> bool:
        """Whether rank 0 has written the manifest."""
        return (self.path / MANIFEST).is_file()

    def check(self) -> None:
        """Compares the manifest of this run with that of the directory.

        Raises:
            UserError: The directory is of another model, or has other prompt settings.
        """
        if not self.is_begun:
            return
        found = read_run_manifest(self.path)
        _check_same_run(self.path, found, self.manifest)
        if not self._is_compared:
            if found["schema_version"] == BY_WEIGHTS:
                warn_by_weights(self.path)
            warn_of_versions(self.path, found, self.manifest["versions"])
        self._is_compared = True
        self.manifest = found

    def begin(self, info: Mapping[str, Any] | None = None) -> None:
        """Writes the manifest if it does not exist yet.

        Args:
            info: Complete record of the engine, after it is loaded.
        """
        if self._is_begun:
            return
        self.check()
        for name in FOLDERS:
            _make_folder(self.path / name)
        if self.rank == 0 and not self.is_begun:
            self.manifest |= {} if info is None else {"engine_info": dict(info)}
            write_json(self.path / MANIFEST, self.manifest)
        self._is_begun = True

    def stored(self, name: str) -> dict[str, StoredSample]:
        """Returns the samples of a batch that are in the directory, by id.

        Raises:
            UserError: A file is damaged.
        """
        top = self.path / "samples"
        folders = [*sorted(top.glob("rank-*")), top]
        return {key: sample for folder in folders for key, sample in _stored_samples(folder / f"{name}.jsonl")}

    def store(self, name: str, row: Mapping[str, Any]) -> None:
        """Appends a sample of a batch, before its request is sent.

        Raises:
            UserError: The file cannot be written.
        """
        self.begin()
        self._held.check()
        folder = self.path / "samples" / (f"rank-{self.rank}" if self.rank else "")
        _make_folder(folder)
        append_line(folder / f"{name}.jsonl", row)

    def append(self, kind: str, row: Mapping[str, Any]) -> None:
        """Appends a line to this process's part of ``answers`` or ``harness``, and flushes it to disk.

        Raises:
            UserError: The file cannot be written.
        """
        self.begin()
        self._held.check()
        if kind not in self._parts:
            self._parts[kind] = part_writer(self.path, kind, rank=self.rank)
        self._parts[kind](row)

    def release(self) -> None:
        """Releases the lock of the directory."""
        self._held.release()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, resumes=True) from error


def part_writer(folder: Path, kind: str, *, rank: int = 0) -> Write:
    """Returns a function that appends lines to a new part of a run, created with the first line, and flushes each."""
    path = folder / kind / f"part-{rank}-{time.time_ns()}-{uuid.uuid4().hex}.jsonl"

    def write(row: Mapping[str, Any]) -> None:
        _make_folder(path.parent)
        append_line(path, row)

    return write


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the manifest of a run.

    Raises:
        UserError: The directory contains no manifest, or the manifest is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file() or not (Path(folder) / "samples").is_dir():
        raise UserError(f"{shown(folder)} is not a benchmark run: pass the directory of longlens bench run")
    wanted = {"model": str, "mode": str, "template": str, "think_tokens": int}
    manifest = read_run_manifest(Path(folder), step=_RUN_STEP)
    check_fields(manifest, shown(path), wanted)
    if manifest.get("think_marks") is not None:
        check_strings(manifest["think_marks"], f"{shown(path)}: think_marks")
    return manifest


def set_think_marks(folder: str | os.PathLike[str], marks: Marks) -> None:
    """Records the delimiters of the reasoning in a run's answers.

    Raises:
        UserError: The directory contains no run, or cannot be written.
    """
    manifest = read_manifest(folder)
    if manifest.get("think_marks") != list(marks):
        write_json(Path(folder) / MANIFEST, manifest | {"think_marks": list(marks)})


def read_samples(folder: str | os.PathLike[str]) -> Iterator[tuple[str, Row]]:
    """Yields positions and rows of the samples of a run, task after task, each id once.

    Raises:
        UserError: A row is damaged.
    """
    ids: set[str] = set()
    for path in sorted((Path(folder) / "samples").rglob("*.jsonl")):
        for line in read_lines(path, step=_RUN_STEP, unfinished=True):
            row = _check_sample_row(line.fields(), line.place)
            if row["id"] not in ids:
                ids.add(row["id"])
                yield line.place, row


def read_answers(folder: str | os.PathLike[str], mode: str) -> Iterator[Row]:
    """Yields the answers of a run in a mode.

    Raises:
        UserError: A row is damaged.
    """
    wanted: dict[str, Any] = {"key": str, "prompt_sha256": str}
    wanted |= {"text": str, "is_truncated": bool} if mode == "generate" else {"logprob": NUMBER, "is_greedy": bool}
    for place, row in _parts(folder, "answers"):
        yield check_fields(row, place, wanted)


def read_judged(folder: str | os.PathLike[str]) -> Iterator[Row]:
    """Yields the scores of judges and NLI models.

    Raises:
        UserError: A row is damaged.
    """
    for place, row in _parts(folder, "judged"):
        check_fields(row, place, {"id": str, "by": str, "scores": dict, "prompts?": str, "model?": str})
        check_fields(row["scores"], f"{place}, scores", dict.fromkeys(row["scores"], NUMBER))
        yield row


def read_harness(folder: str | os.PathLike[str], kind: str) -> Iterator[Row]:
    """Yields lines of tasks of lm-evaluation-harness of one kind, ``answer`` or ``result``.

    Raises:
        UserError: A row is damaged.
    """
    for place, row in _parts(folder, "harness"):
        if row.get("kind") != kind:
            continue
        if kind == "answer":
            check_fields(row, place, {"key": str})
        else:
            check_fields(row, place, {"name": str, "results": dict, "length?": str})
            for task, metrics in row["results"].items():
                check_fields(row["results"], f"{place}, results", {task: dict})
                for metric, value in metrics.items():
                    check_fields(metrics, f"{place}, {task}", {metric: dict})
                    check_fields(value, f"{place}, {task}", {"score?": NUMBER})
                    if value.get("interval") is not None:
                        check_numbers(value["interval"], f"{place}, {task}: interval", 2)
        yield row


def _parts(folder: str | os.PathLike[str], kind: str) -> Iterator[tuple[str, Row]]:
    for path in sorted((Path(folder) / kind).glob("part-*.jsonl")):
        for line in read_lines(path, step=_RUN_STEP, unfinished=True):
            yield line.place, line.fields()


def _check_sample_row(row: Row, place: str) -> Row:
    """Checks a sample's row of a run; `longlens.bench.samples.stored_sample` parses the sample itself.

    Raises:
        UserError: A field is missing or has the wrong type.
    """
    wanted = {"id": str, "batch": str, "prompt_sha256": str, "skipped": bool, "metadata": dict, "prompt?": str}
    check_fields(row, place, {**wanted, "max_new_tokens": int, "recipe?": str})
    for name in ("continuations", "stop", "task_stop"):
        check_strings(row.get(name), f"{place}: {name}")
    return row


def check_fields(row: Mapping[str, Any], place: str, wanted: Mapping[str, Any], *, step: str = _RUN_STEP) -> Any:
    """Returns the row if its fields have these types.

    Args:
        row: A row of an untrusted file.
        place: Position of the row, for the message.
        wanted: Name -> type or types; a field whose name ends in ``?`` may be missing or null. Numbers are finite or
            -inf, and a bool is not a number.
        step: The next step, for the message.

    Raises:
        UserError: A field is missing or has the wrong type.
    """
    for key, kinds in wanted.items():
        name = key.removesuffix("?")
        value = row.get(name)
        if value is None and name != key:
            continue
        is_other = not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)
        if is_other or (isinstance(value, float) and not value < math.inf):
            kind = "number" if isinstance(kinds, tuple) else JSON_NAMES.get(kinds, kinds.__name__)
            raise UserError(f"{place}: {name} is {shown_value(value)}, expected a JSON {kind}: {step}")
    return row


def check_strings(value: Any, place: str) -> list[str]:
    """Returns the value if it is a list of strings.

    Raises:
        UserError: It is not a list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise UserError(f"{place} is {shown_value(value)}, expected a list of strings: {_RUN_STEP}")
    return value


def check_numbers(value: Any, place: str, count: int | None = None) -> list[float]:
    """Returns the value if it is a list of finite numbers, of the given length if one is passed.

    Raises:
        UserError: It is not such a list.
    """
    is_list = isinstance(value, list) and all(type(part) in NUMBER and math.isfinite(part) for part in value)
    if not is_list or (count is not None and len(value) != count):
        raise UserError(f"{place} is {shown_value(value)}, expected a list of numbers: {_RUN_STEP}")
    return list(value)


def _stored_samples(path: Path) -> Iterator[tuple[str, StoredSample]]:
    for line in read_lines(path, step=_RUN_STEP, unfinished=True) if path.is_file() else ():
        row = _check_sample_row(line.fields(), line.place)
        count = len(row["continuations"])
        yield (
            row["id"],
            StoredSample(
                path=path,
                start=line.start,
                recipe=row.get("recipe") or "",
                identity=sample_identity(row),
                keys=tuple(f"{row['id']}#{number}" for number in range(count)) if count else (row["id"],),
                prompt_sha256=row["prompt_sha256"],
                is_skipped=row["skipped"],
                is_cut="cut" in row["metadata"],
                data=data_hashes(row["metadata"]),
            ),
        )


def data_hashes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hashes of the data and the haystack from which a sample is built."""
    return {name: metadata[name] for name in ("data", "haystack") if name in metadata}


def sample_identity(row: Mapping[str, Any]) -> list[Any]:
    """Returns the identity of a sample's row: `SAMPLE` and the settings of its task, as JSON represents them."""
    metadata = row.get("metadata")
    settings = metadata.get("settings") if isinstance(metadata, Mapping) else None
    values: list[Any] = json.loads(json.dumps([*(row.get(name) for name in SAMPLE), settings]))
    return values


def _check_same_run(folder: Path, found: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Raises UserError if a run is of another model or has other prompt settings; names and paths are not compared."""
    there, here = (record.get("engine") or {} for record in (found, manifest))
    # The model of a server is identified only by its name.
    names = IDENTITY if here.get("weights_sha256") else ("model", *IDENTITY)
    same = [
        {name: engine.get(name) for name in ("backend", "arguments")} | {name: record.get(name) for name in names}
        for engine, record in ((there, found), (here, manifest))
    ]
    models = two_models({**there, "name": found.get("model")}, {**here, "name": manifest["model"]})
    refuse_other(folder, "benchmark run", model_differences(there, here) + differences(*same), models=models)
