"""Token scores on disk: many documents a Parquet part, written atomically, resumed by id, read lazily.

::

    RUN/manifest.json                        written once; a run with other settings is refused
    RUN/long/part-00000-UUID.parquet         a row a document: its text, tokens, spans and long log-probabilities
    RUN/short/K4096-d1024/part-....parquet   id and short log-probabilities; another K is another folder

What is done is the ids in committed parts. A part is a temporary file (``.NAME.tmp``) until it is renamed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from longlens.errors import UserError
from longlens.scoring.scores import ShortContext, TokenScores, choose_short_context

SCHEMA_VERSION = 1
ROW_GROUP_TOKENS = 2**20
PART_TOKENS = 2**24
PART_SECONDS = 30.0
CACHED_ROW_GROUPS = 2

_floats = pa.list_(pa.float32())
LONG_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text_sha256", pa.string()),
        ("text", pa.string()),
        ("total_tokens", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("char_start", pa.list_(pa.int64())),
        ("char_end", pa.list_(pa.int64())),
        ("logprobs", _floats),
    ]
)
SHORT_SCHEMA = pa.schema([("id", pa.string()), ("logprobs", _floats)])


class _Place(NamedTuple):
    """Where a row is."""

    path: Path
    group: int
    row: int


def short_folder(short: ShortContext) -> str:
    """Where the scores of a short context are, inside the run: ``short/K4096-d1024``."""
    return f"short/K{short.context}-d{short.stride}"


class PartWriter:
    """Writes rows of one side of a run (long, or one short context) into parts.

    A row group is closed at about 2^20 tokens; a part by size, or by `tick` once its oldest row is 30 s old, so that
    a kill loses half a minute of work.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rank: int) -> None:
        self._folder, self._schema, self._rank = folder, schema, rank
        self._rows: list[dict[str, Any]] = []
        self._row_tokens = self._part_tokens = 0
        self._opened = 0.0
        self._writer: pq.ParquetWriter | None = None
        self._file: pa.OSFile | None = None
        self._temporary = self._target = folder

    def add(self, row: dict[str, Any]) -> None:
        """Appends one document's row.

        Raises:
            UserError: The disk is full or the folder cannot be written; committed parts are untouched.
        """
        if self._writer is None and not self._rows:
            self._opened = time.monotonic()
        self._rows.append(row)
        self._row_tokens += len(row["logprobs"])
        if self._row_tokens >= ROW_GROUP_TOKENS:
            self._flush()
        if self._part_tokens >= PART_TOKENS:
            self.commit()

    def tick(self) -> None:
        """Closes the part once its oldest row is old enough."""
        if (self._writer or self._rows) and time.monotonic() - self._opened >= PART_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Closes the part and renames it into place."""
        self._flush()
        if self._writer is None:
            return
        try:
            self._writer.close()
            assert self._file is not None
            self._file.close()
            with self._temporary.open("rb") as written:
                os.fsync(written.fileno())
            self._temporary.rename(self._target)
        except OSError as error:
            self.discard()
            raise _cannot_write(self._target, error) from error
        self._writer = self._file = None
        self._part_tokens = 0

    def discard(self) -> None:
        """Drops what is not committed."""
        writer, self._writer, self._rows = self._writer, None, []
        file, self._file = self._file, None
        self._row_tokens = self._part_tokens = 0
        # The disk that could not take the rows cannot take the footer either; the file goes away below.
        if writer is not None:
            with suppress(OSError):
                writer.close()
            writer.is_open = False  # its __del__ would try once more, and complain on stderr
        if file is not None:
            with suppress(OSError):
                file.close()
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._rows:
            return
        try:
            if self._writer is None:
                self._open()
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            assert self._writer is not None
            self._writer.write_table(table, row_group_size=len(self._rows))
        except OSError as error:
            self.discard()
            raise _cannot_write(self._target, error) from error
        self._rows, self._part_tokens, self._row_tokens = [], self._part_tokens + self._row_tokens, 0

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # The name begins with the time (as UUID version 7 does), so that the order of names is the order of writing.
        unique = f"{time.time_ns() // 10**6:012x}-{uuid.uuid4().hex[:12]}"
        self._target = self._folder / f"part-{self._rank:05d}-{unique}.parquet"
        self._temporary = self._folder / f".{self._target.name}.tmp"
        lists = [field.name for field in self._schema if pa.types.is_list(field.type)]
        encodings = {
            f"{name}.list.element": "BYTE_STREAM_SPLIT" if name == "logprobs" else "DELTA_BINARY_PACKED"
            for name in lists
        }
        self._file = _open_file(self._temporary, "wb")
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding=encodings,
            write_statistics=["id"],
            write_page_checksum=True,
        )


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return UserError(
        f"cannot write {path}: {reason}; what was committed before is kept: "
        + ("make room" if full else "check the folder and its permissions")
        + " and run the same command again, it goes on from there"
    )


class RunWriter:
    """The one writer of a run folder, under an OS lock (one writer a rank where several processes share a run).

    Raises:
        UserError: Another process writes there, or the folder holds a run made with other settings.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], *, rank: int = 0) -> None:
        self.folder, self._rank = folder, rank
        self._writers: dict[ShortContext | None, PartWriter] = {}
        try:
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder} is a file; give a folder for the scores, such as -o scores")
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(folder)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        self._lock = FileLock(folder / f".lock-{rank:05d}")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"another process is writing to {folder}: wait for it, or give another folder") from error
        except OSError as error:
            raise _cannot_write(folder, error) from error
        try:
            self._claim(manifest)
            for temporary in folder.glob(f"**/.part-{rank:05d}-*.parquet.tmp"):
                temporary.unlink(missing_ok=True)
            self._done: dict[ShortContext | None, dict[str, str | None]] = {}
        except BaseException:
            self._lock.release()
            raise

    def _claim(self, manifest: Mapping[str, Any]) -> None:
        path = self.folder / "manifest.json"
        if path.exists():
            check_same_run(self.folder, read_manifest(self.folder), manifest)
        else:
            write_json(path, manifest)

    def done(self, short: ShortContext | None) -> Mapping[str, str | None]:
        """Ids in committed parts of a side (None is long), with the text's hash where the side has it."""
        if short not in self._done:
            rows = _read_ids(self.folder, short)
            self._done[short] = {row["id"]: row.get("text_sha256") for _, row in rows}
        return self._done[short]

    def add(self, short: ShortContext | None, row: dict[str, Any]) -> None:
        """Appends a row to a side."""
        if short not in self._writers:
            folder = self.folder / ("long" if short is None else short_folder(short))
            self._writers[short] = PartWriter(folder, LONG_SCHEMA if short is None else SHORT_SCHEMA, self._rank)
        self._writers[short].add(row)

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
            self._lock.release()
        if failures and error is None:
            raise failures[0]


def _refuse_foreign(folder: Path) -> None:
    entries = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    if entries and "manifest.json" not in entries:
        raise UserError(f"{folder} is not empty and holds no run (it has {min(entries)!r}): give a new folder")


def check_same_run(folder: Path, have: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to mix scores that were made differently.

    Raises:
        UserError: Model, tokenizer or settings differ; both values are shown.
    """
    pairs = [("model", key) for key in ("weights_sha256", "tokenizer_sha256")]
    pairs += [("settings", key) for key in sorted({*have["settings"], *wanted["settings"]})]
    differs = [
        f"{key} is {have[part].get(key)!r} there and {wanted[part].get(key)!r} here"
        for part, key in pairs
        if have[part].get(key) != wanted[part].get(key)
    ]
    if differs:
        name = f"{have['model'].get('name')} there, {wanted['model'].get('name')} here"
        raise UserError(
            f"{folder} holds scores made with other settings ({name}): {'; '.join(differs)}. "
            "Give another folder, or the settings of that run"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON into a temporary file beside `path` and renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        UserError: There is no run, or it is of another schema version, or broken.
    """
    path = folder / "manifest.json"
    if not folder.exists():
        raise UserError(f"no such folder: {folder}. Make scores with: longlens score DOCS --model M -o {folder}")
    if not path.is_file():
        raise UserError(f"{folder} holds no scores (no manifest.json): expected a folder made by longlens score")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error}): score again into a new folder") from error
    manifest: dict[str, Any] = content if isinstance(content, dict) else {}
    version, model, settings = (manifest.get(name) for name in ("schema_version", "model", "settings"))
    if version not in (None, SCHEMA_VERSION):
        raise UserError(
            f"{path} has schema_version {version!r}, this longlens reads {SCHEMA_VERSION}: "
            "install the version of longlens that wrote it"
        )
    if version is None or not isinstance(settings, dict) or not isinstance(model, dict) or "name" not in model:
        raise UserError(f"{path} is no manifest of longlens: expected schema_version, model and settings in it")
    return manifest


def part_paths(folder: Path) -> list[Path]:
    """Committed parts, in the order of their names."""
    return sorted(folder.glob("part-*.parquet"))


def _open_file(path: Path, mode: str) -> pa.OSFile:
    # By its bytes: as a string, pyarrow takes some names for URIs, and cannot encode those that are no Unicode.
    return pa.OSFile(os.fsencode(path), mode)


def _read_ids(folder: Path, short: ShortContext | None) -> Iterator[tuple[_Place, dict[str, str]]]:
    """Of each row of a side its place and its id, with the hash of the text where the side has it."""
    schema, columns = (LONG_SCHEMA, ["id", "text_sha256"]) if short is None else (SHORT_SCHEMA, ["id"])
    for path in part_paths(folder / ("long" if short is None else short_folder(short))):
        with _part(path, schema) as parquet:
            for group in range(parquet.num_row_groups):
                for row, record in enumerate(parquet.read_row_group(group, columns=columns).to_pylist()):
                    yield _Place(path, group, row), record


@contextmanager
def _part(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    try:
        with _open_file(path, "rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            there = parquet.schema_arrow
            if not there.equals(schema):
                raise pa.ArrowInvalid(f"its columns are {', '.join(there.names)}, or they have other types")
            yield parquet
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} is broken or not made by longlens ({reason}): delete that file and run the same longlens score "
            "command again, it scores what is missing"
        ) from error


class StoredScores(Sequence[TokenScores]):
    """The scores of a run folder, read row group by row group as they are asked for.

    Documents come in the order of the long parts; only those that have the selected short context as well are there
    (`num_incomplete` others wait for an interrupted run to be resumed).
    """

    def __init__(self, folder: Path, *, context: int | None = None, stride: int | None = None) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        found = [re.fullmatch(r"K(\d+)-d(\d+)", entry.name) for entry in folder.glob("short/*")]
        self.short_contexts = sorted(ShortContext(int(m[1]), int(m[2])) for m in found if m)
        wanted = context is not None or stride is not None
        self._selected = (
            choose_short_context(self.short_contexts, context, stride) if self.short_contexts or wanted else None
        )
        sides = {short: self._index(short) for short in [None, *self.short_contexts]}
        self._where = {
            id: {short: side[id] for short, side in sides.items() if id in side}
            for id in sides[None]
            if self._selected is None or id in sides[self._selected]
        }
        self.ids = list(self._where)
        self.num_incomplete = len(sides[None]) - len(self.ids)
        self._cache: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()

    def _index(self, short: ShortContext | None) -> dict[str, _Place]:
        """Where each id of one side is."""
        where: dict[str, _Place] = {}
        hashes: dict[str, str] = {}
        for place, record in _read_ids(self.folder, short):
            id = record["id"]
            if short is None and hashes.setdefault(id, record["text_sha256"]) != record["text_sha256"]:
                raise UserError(f"{self.folder} holds two texts with the id {id!r}: score them into two folders")
            where.setdefault(id, place)
        return where

    def get(self, id: str) -> TokenScores:
        """The scores of the document with this id.

        Raises:
            KeyError: There is none.
            UserError: A part is broken.
        """
        where = self._where[id]
        long = self._row(*where[None])
        spans = np.stack([_array(long["char_start"], np.int64), _array(long["char_end"], np.int64)], axis=1)
        return TokenScores(
            id=id,
            text=long["text"].as_py(),
            text_sha256=long["text_sha256"].as_py(),
            total_tokens=long["total_tokens"].as_py(),
            token_ids=_array(long["token_ids"], np.int64),
            char_spans=spans,
            long_logprobs=_array(long["logprobs"], np.float32),
            short={s: _array(self._row(*place)["logprobs"], np.float32) for s, place in where.items() if s is not None},
            selected=self._selected,
        )

    def _row(self, path: Path, group: int, row: int) -> dict[str, pa.Scalar]:
        table = self._cache.get((path, group))
        if table is None:
            schema = LONG_SCHEMA if path.parent == self.folder / "long" else SHORT_SCHEMA
            with _part(path, schema) as parquet:
                table = parquet.read_row_group(group)
                table.validate(full=True)
            self._cache[path, group] = table
            while len(self._cache) > CACHED_ROW_GROUPS * (1 + len(self.short_contexts)):
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end((path, group))
        return {name: table[name][row] for name in table.column_names}

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> TokenScores: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenScores]: ...
    def __getitem__(self, index: int | slice) -> TokenScores | Sequence[TokenScores]:
        if isinstance(index, slice):
            return [self.get(id) for id in self.ids[index]]
        return self.get(self.ids[index])

    def __iter__(self) -> Iterator[TokenScores]:
        return (self.get(id) for id in self.ids)


def _array(value: pa.Scalar, dtype: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return array


def open_scores(path: str | os.PathLike[str], *, context: int | None = None, stride: int | None = None) -> StoredScores:
    """Opens a run folder; nothing but ids is read yet.

    Args:
        path: Folder made by ``longlens score`` or ``longlens.score(out=...)``.
        context: Which K `short_logprobs` and `lsd` are about; the largest that was scored unless named.
        stride: Which d, where one K was scored with several.

    Raises:
        UserError: No run there, another schema version, a broken part, or a short context that was not scored.
    """
    return StoredScores(Path(path), context=context, stride=stride)
