"""Writing token scores: many documents a Parquet part, atomic, resumed by id, one locked writer.

What is done is the ids in committed parts. A part is a temporary file (``.NAME.tmp``) until it is renamed.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from longlens.errors import UserError, shown_value
from longlens.files import cannot_write, create_json
from longlens.runs.folder import OwnFolder, warn_of_versions
from longlens.runs.identity import model_differences
from longlens.runs.parts import Part
from longlens.scoring.layout import (
    MANIFEST,
    RUN_KEY,
    read_ids,
    read_manifest,
    run_sha256,
    side_folder,
    side_schema,
)
from longlens.scoring.scores import ShortContext

ROW_GROUP_TOKENS = 2**20
PART_TOKENS = 2**24
PART_SECONDS = 30.0


class PartWriter:
    """Writes rows of one side of a run (long, or one short context) into parts.

    A row group is closed at about 2^20 tokens; a part by size, or by `tick` once its oldest row is 30 s old, so that
    a kill loses half a minute of work.

    Args:
        folder: Of the side.
        schema: Its columns, with the metadata of each part.
        rank: Of this process, in the names of parts.
        check: Raises UserError where the run folder is gone.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rank: int, check: Callable[[], None]) -> None:
        self._folder, self._schema, self._rank, self._check = folder, schema, rank, check
        self._rows: list[dict[str, Any]] = []
        self._row_tokens = self._part_tokens = 0
        self._opened = 0.0
        self._part: Part | None = None
        self._target = self._folder

    def add(self, row: dict[str, Any]) -> None:
        """Appends one document's row.

        Raises:
            UserError: The disk is full or the folder cannot be written; committed parts are untouched.
        """
        if self._part is None and not self._rows:
            self._opened = time.monotonic()
        self._rows.append(row)
        self._row_tokens += len(row["logprobs"])
        if self._row_tokens >= ROW_GROUP_TOKENS:
            self._flush()
        if self._part_tokens >= PART_TOKENS:
            self.commit()

    def tick(self) -> None:
        """Closes the part once its oldest row is old enough."""
        if (self._part or self._rows) and time.monotonic() - self._opened >= PART_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Closes the part and renames it into place."""
        self._flush()
        if self._part is None:
            return
        try:
            self._part.close()
            self._check()
            with self._part.path.open("rb") as written:
                os.fsync(written.fileno())
            self._part.path.rename(self._target)
        except OSError as error:
            self.discard()
            raise cannot_write(self._target, error, resumes=True) from error
        self._part, self._part_tokens = None, 0

    def discard(self) -> None:
        """Drops what is not committed."""
        part, self._part, self._rows = self._part, None, []
        self._row_tokens = self._part_tokens = 0
        if part is not None:
            # The disk that could not take the rows cannot take the footer either.
            with suppress(OSError):
                part.close()
            with suppress(OSError):
                part.path.unlink()

    def _flush(self) -> None:
        if not self._rows:
            return
        try:
            if self._part is None:
                self._part = self._open()
            self._part.write(pa.Table.from_pylist(self._rows, schema=self._schema))
        except OSError as error:
            self.discard()
            raise cannot_write(self._target, error, resumes=True) from error
        self._rows, self._part_tokens, self._row_tokens = [], self._part_tokens + self._row_tokens, 0

    def _open(self) -> Part:
        self._check()
        self._folder.mkdir(parents=True, exist_ok=True)
        # The name begins with the time (as UUID version 7 does), so that the order of names is the order of writing.
        unique = f"{time.time_ns() // 10**6:012x}-{uuid.uuid4().hex[:12]}"
        self._target = self._folder / f"part-{self._rank:05d}-{unique}.parquet"
        return Part(self._folder / f".{self._target.name}.tmp", self._schema, statistics=["id"])


def check_writable(folder: Path, *, rank: int = 0) -> None:
    """Refuses, before anything is computed, a folder that no run can be written to.

    Raises:
        UserError: It is a file, holds something else, another process writes there, or it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # False also for a name too long
    _own(folder, rank).release()
    for path in made:
        with suppress(OSError):  # gone, or another process has put something there
            path.rmdir()


def _own(folder: Path, rank: int) -> OwnFolder:
    lock = f".lock-{rank:05d}"
    return OwnFolder(folder, "run", marker=MANIFEST, doing="writing to", example="scores", lock=lock)


class RunWriter:
    """The one writer of a run folder, under an OS lock (one writer a rank where several processes share a run).

    Raises:
        UserError: Another process writes there, or the folder holds a run made with other settings.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], *, rank: int = 0) -> None:
        self.folder, self._rank = folder, rank
        self._writers: dict[ShortContext | None, PartWriter] = {}
        self._own = _own(folder, rank)
        try:
            self._run = self._claim(manifest)
            for temporary in folder.glob(f"**/.part-{rank:05d}-*.parquet.tmp"):
                temporary.unlink(missing_ok=True)
            self._done: dict[ShortContext | None, dict[str, str]] = {}
        except BaseException:
            self._own.release()
            raise

    def _claim(self, manifest: Mapping[str, Any]) -> str | None:
        """Writes the manifest, or holds this run's against the one that is there; returns `run_sha256`."""
        path = self.folder / MANIFEST
        if not path.exists() and create_json(path, manifest):
            return run_sha256(manifest)
        have = read_manifest(self.folder)
        check_same_run(self.folder, have, manifest)
        warn_of_versions(self.folder, have, manifest["versions"])
        return run_sha256(have)

    def done(self, short: ShortContext | None) -> Mapping[str, str]:
        """Ids in committed parts of a side (None is long), with their texts' hashes.

        A short row whose long row was lost is not done: without the hash nothing says of which text it is.
        """
        if short not in self._done:
            rows = read_ids(self.folder, short, self._run)
            if short is None:
                self._done[short] = {row["id"]: row["text_sha256"] for _, row in rows}
            else:
                long = self.done(None)
                self._done[short] = {row["id"]: long[row["id"]] for _, row in rows if row["id"] in long}
        return self._done[short]

    def add(self, short: ShortContext | None, row: dict[str, Any]) -> None:
        """Appends a row to a side."""
        if short not in self._writers:
            schema = side_schema(short)
            if self._run is not None:
                schema = schema.with_metadata({RUN_KEY: self._run})
            self._writers[short] = PartWriter(self.folder / side_folder(short), schema, self._rank, self._own.check)
        self._writers[short].add(row)

    def make_side(self, short: ShortContext) -> None:
        """Makes the folder of a side, which says that it was scored also where no document has rows of it.

        Raises:
            UserError: It cannot be made.
        """
        self._own.check()
        folder = self.folder / side_folder(short)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error, resumes=True) from error

    def tick(self) -> None:
        """Commits the parts whose oldest row is old enough."""
        for writer in self._writers.values():
            writer.tick()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Rows are whole documents, so what is finished is kept even when something else went wrong (Ctrl-C too).
        failures: list[UserError] = []
        try:
            for writer in self._writers.values():
                try:
                    writer.commit()
                except UserError as failure:
                    failures.append(failure)
        finally:
            self._own.release()
        if failures and error is None:
            raise failures[0]


def check_same_run(folder: Path, have: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to mix scores that were made differently.

    Raises:
        UserError: Model, tokenizer or settings differ; both values are shown.
    """
    there, here = have["settings"], wanted["settings"]
    differs = model_differences(have["model"], wanted["model"])
    differs += [
        f"{key} is {shown_value(there.get(key))} there and {shown_value(here.get(key))} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    if differs:
        name = f"{have['model'].get('name')} there, {wanted['model'].get('name')} here"
        raise UserError(
            f"{folder} holds scores made with other settings ({name}): {'; '.join(dict.fromkeys(differs))}. "
            "Give another folder, or the settings of that run"
        )
