"""The folder of a run: what was asked, and what was answered, written as it comes.

::

    RUN/manifest.json                      the model and how it is asked; another one is refused
    RUN/samples/TASK-LENGTH-SEED.jsonl     a line a sample: id, exact prompt, tokens, what is scored; written whole
    RUN/answers/part-….jsonl               a line an answer, appended as it comes; one that a kill broke off is none
    RUN/harness/part-….jsonl               the same for tasks of lm-evaluation-harness, whose samples are its own
    RUN/judged/part-….jsonl                a line a sample that a judge or an NLI model scored
    RUN/results.json                       what the answers come to; made anew from them at any time

A part is of one process and is named ``part-RANK-TIME-UUID``, so that those of a process stand in the order in which
they were begun: of two results of one thing the last one counts.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from longlens.errors import UserError, shown, shown_value, system_errors, utf8
from longlens.files import cannot_write, read_json, replacing, write_json
from longlens.runs.folder import OwnFolder, warn_by_weights, warn_of_versions
from longlens.runs.identity import model_differences

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
RESULTS = "results.json"
FOLDERS = ("samples", "answers", "harness", "judged")
MANIFEST_VERSION = 2
"""2: ``engine`` has the model's configuration, see `longlens.runs.identity`."""
IDENTITY = ("mode", "template", "template_arguments", "overlong", "think_tokens")
"""How a model is asked. With ``engine`` it is what a run folder is of; numbers of another one are not put beside them.
"""
SAMPLE = ("prompt_sha256", "answers", "max_new_tokens", "stop")
"""What a sample is, beside the settings of its task: answers to another one, and scores of them, are not its own."""


class BenchRun:
    """A run folder that answers are written to, one process of the run at a time in each part.

    Args:
        folder: A new folder, or one of the same run.
        manifest: What the run is of; ``engine`` and `IDENTITY` have to agree with what is there.
        rank: Of this process; the first one alone writes manifest, samples and results.

    Raises:
        UserError: The folder holds something else, another run, or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any], *, rank: int = 0) -> None:
        self.path, self.rank = Path(folder), rank
        self._stack = ExitStack()
        self._parts: dict[str, Write] = {}
        self._held: OwnFolder | None = None
        if rank == 0:
            self._held = OwnFolder(
                self.path, "benchmark run", marker=MANIFEST, own=FOLDERS, doing="running a benchmark in", example="run"
            )
        try:
            self.manifest = self._agreed(dict(manifest))
            for name in FOLDERS:
                (self.path / name).mkdir(parents=True, exist_ok=True)
        except BaseException:
            self.release()
            raise

    @property
    def is_begun(self) -> bool:
        """Whether the first process has written what the run is of."""
        return (self.path / MANIFEST).is_file()

    def _agreed(self, manifest: dict[str, Any]) -> dict[str, Any]:
        there = self.path / MANIFEST
        if there.is_file():
            found = read_json(there)
            version = found.get("schema_version")
            if version not in (1, MANIFEST_VERSION):
                raise UserError(
                    f"{there} has schema_version {shown_value(version)}, this longlens reads {MANIFEST_VERSION}: "
                    "install the version of longlens that wrote it, or give a new folder"
                )
            _refuse_other(self.path, found, manifest)
            if version == 1:
                warn_by_weights(self.path)
            warn_of_versions(self.path, found.get("versions") or {}, manifest["versions"])
            return found
        if self.rank == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(there, manifest)
        return manifest

    def keep_samples(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes what is asked, whole; a file that is there has to begin alike.

        Raises:
            UserError: Other samples of that name are there.
        """
        path = self.path / "samples" / f"{name}.jsonl"
        wanted = {str(row["id"]): row for row in rows}
        there = {str(row["id"]): row for row in read_lines(path)} if path.is_file() else {}
        for key in there.keys() & wanted.keys():
            if _identity(there[key]) != _identity(wanted[key]):
                raise UserError(
                    f"{self.path} holds another sample {key} (other settings, data or haystack): give a new folder"
                )
        if self.rank == 0 and not wanted.keys() <= there.keys():
            merged = {**there, **wanted}
            with replacing(path) as file:
                for row in merged.values():
                    file.write(json.dumps(row, ensure_ascii=True) + "\n")

    def append(self, kind: str, row: Mapping[str, Any]) -> None:
        """Adds a line to this process's part of ``answers`` or ``harness``; it is on its way to the disk at once.

        Raises:
            UserError: It cannot be written.
        """
        if kind not in self._parts:
            self._parts[kind] = self._stack.enter_context(part_writer(self.path, kind, rank=self.rank))
        self._parts[kind](row)

    def read(self, kind: str) -> Iterator[dict[str, Any]]:
        """All lines of all parts."""
        return read_parts(self.path, kind)

    def release(self) -> None:
        """Lets go of the folder."""
        self._stack.close()
        if self._held is not None:
            self._held.release()
            self._held = None


Write = Callable[[Mapping[str, Any]], None]


@contextmanager
def part_writer(folder: Path, kind: str, *, rank: int = 0) -> Iterator[Write]:
    """A new part of a run, made with its first line; each line is on its way to the disk at once.

    Raises:
        UserError: It cannot be written.
    """
    with ExitStack() as stack:
        files: list[TextIO] = []

        def write(row: Mapping[str, Any]) -> None:
            try:
                if not files:
                    (folder / kind).mkdir(exist_ok=True)
                    path = folder / kind / f"part-{rank}-{time.time_ns()}-{uuid.uuid4().hex}.jsonl"
                    files.append(stack.enter_context(path.open("x", encoding="utf-8", newline="\n")))
                files[0].write(json.dumps(row, ensure_ascii=True) + "\n")
                files[0].flush()
            except OSError as error:
                raise cannot_write(folder / kind, error, resumes=True) from error

        yield write


def open_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        UserError: The folder holds none.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file() or not (Path(folder) / "samples").is_dir():
        raise UserError(f"{shown(folder)} is no benchmark run: give the folder of longlens bench run")
    return read_json(path)


def read_samples(folder: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """What was asked in a run, task after task."""
    for path in sorted((Path(folder) / "samples").glob("*.jsonl")):
        yield from read_lines(path)


def read_parts(folder: str | os.PathLike[str], kind: str) -> Iterator[dict[str, Any]]:
    """All lines of the parts of a run; the last one of a part, if a kill broke it off, is left out."""
    for path in sorted((Path(folder) / kind).glob("part-*.jsonl")):
        yield from read_lines(path, may_be_broken_off=True)


def read_lines(path: Path, *, may_be_broken_off: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file.

    Raises:
        UserError: A line is none.
    """
    with system_errors(path), path.open("rb") as lines:
        offset = 0
        for number, line in enumerate(lines, start=1):
            if may_be_broken_off and not line.endswith(b"\n"):
                return
            text = utf8(line, f"{shown(path)}, line {number}", offset)
            offset += len(line)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(f"{shown(path)}, line {number}: not JSON ({error.msg}): mend or delete it") from error
            if not isinstance(row, dict):
                raise UserError(f"{shown(path)}, line {number}: expected a JSON object, it is a {type(row).__name__}")
            yield row


def _refuse_other(folder: Path, found: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Raises UserError where a run is of another model, or asked in another way; names and paths do not count."""
    there, here = (dict(record.get("engine") or {}) for record in (found, manifest))
    differs = model_differences(there, here)
    if here.get("weights_sha256") is None and found.get("model") != manifest.get("model"):  # a server's, by its name
        differs.append(
            f"model is {shown_value(found.get('model'))} there and {shown_value(manifest.get('model'))} here"
        )
    for name in ("backend", "arguments"):
        if there.get(name) != here.get(name):
            differs.append(f"{name} is {shown_value(there.get(name))} there and {shown_value(here.get(name))} here")
    if differs:
        raise UserError(f"{folder} holds a run with another engine ({'; '.join(differs)}): give a new folder")
    for name in IDENTITY:
        if found.get(name) != manifest.get(name):
            raise UserError(
                f"{folder} holds a run with another {name.replace('_', ' ')} ({_short(found.get(name))}, now "
                f"{_short(manifest.get(name))}): give a new folder"
            )


def _identity(row: Mapping[str, Any]) -> list[Any]:
    return [*(row.get(name) for name in SAMPLE), row.get("metadata", {}).get("settings")]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
