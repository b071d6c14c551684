"""Writes Parquet files of token rows atomically, limited by size and age."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longlens.files import cannot_write

ROW_GROUP_TOKENS = 2**20
PART_TOKENS = 2**24
PART_SECONDS = 30.0


def open_file(path: Path, mode: str) -> pa.OSFile:
    """Opens a file by the bytes of its name: pyarrow interprets some strings as URIs, and cannot encode others."""
    return pa.OSFile(os.fsencode(path), mode)


class PartWriter:
    """Writes rows into Parquet files of a directory. A file has a temporary name (``.NAME.tmp``) until it is complete.

    A row group has at most `ROW_GROUP_TOKENS` and a file at most `PART_TOKENS`, unless one row is longer.

    Args:
        folder: The directory, which is created with the first file.
        schema: Schema of the rows.
        counted: A list column with one entry per token.
        name: Returns the name of the next file.
        check: Raises UserError if nothing may be written any more.
        statistics: Columns with statistics; all by default.

    Raises:
        UserError: In all methods: the disk is full or the directory cannot be written; complete files are kept.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        *,
        counted: str,
        name: Callable[[], str],
        check: Callable[[], None] = lambda: None,
        statistics: Sequence[str] | None = None,
    ) -> None:
        self._folder, self._schema, self._counted, self._name = folder, schema, counted, name
        self._check, self._statistics = check, statistics
        self._rows: list[Mapping[str, Any]] = []
        self._row_tokens = self._part_tokens = 0
        self._opened = 0.0
        self._part: _Part | None = None
        self._target = folder

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row."""
        tokens = len(row[self._counted])
        if self._rows and self._row_tokens + tokens > ROW_GROUP_TOKENS:
            self._flush()
        if self._part is None and not self._rows:
            self._opened = time.monotonic()
        self._rows.append(row)
        self._row_tokens += tokens
        if self._row_tokens >= ROW_GROUP_TOKENS:
            self._flush()

    def tick(self) -> None:
        """Commits a file whose oldest row is `PART_SECONDS` old, which bounds the work that a killed run loses."""
        if (self._part or self._rows) and time.monotonic() - self._opened >= PART_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Closes the file and renames it into place."""
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
        """Drops rows that are not committed."""
        part, self._part, self._rows = self._part, None, []
        self._row_tokens = self._part_tokens = 0
        if part is not None:
            # A disk that was full for the rows is also full for the footer.
            with suppress(OSError):
                part.close()
            with suppress(OSError):
                part.path.unlink()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._part is not None and self._part_tokens + self._row_tokens > PART_TOKENS:
            rows, self._rows = self._rows, []
            self.commit()
            self._rows, self._opened = rows, time.monotonic()
        try:
            if self._part is None:
                self._part = self._open()
            self._part.write(pa.Table.from_pylist(self._rows, schema=self._schema))
        except OSError as error:
            self.discard()
            raise cannot_write(self._target, error, resumes=True) from error
        self._rows, self._part_tokens, self._row_tokens = [], self._part_tokens + self._row_tokens, 0
        if self._part_tokens >= PART_TOKENS:
            self.commit()

    def _open(self) -> _Part:
        self._check()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._target = self._folder / self._name()
        return _Part(self._folder / f".{self._target.name}.tmp", self._schema, self._statistics)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.commit() if error is None else self.discard()


class _Part:
    """A Parquet file: zstd, page checksums, floats with byte stream split, integers with delta encoding."""

    def __init__(self, path: Path, schema: pa.Schema, statistics: Sequence[str] | None) -> None:
        self.path = path
        encodings = {
            f"{field.name}.list.element": "BYTE_STREAM_SPLIT"
            if pa.types.is_floating(field.type.value_type)
            else "DELTA_BINARY_PACKED"
            for field in schema
            if pa.types.is_list(field.type)
        }
        self._file = open_file(path, "wb")
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding=encodings,
            write_statistics=True if statistics is None else list(statistics),
            write_page_checksum=True,
        )

    def write(self, table: pa.Table) -> None:
        """Writes a row group."""
        self._writer.write_table(table, row_group_size=table.num_rows)

    def close(self) -> None:
        """Writes the footer. After an error the file is also closed, and is not a valid Parquet file."""
        try:
            self._writer.close()
        finally:
            self._writer.is_open = False  # its __del__ would try again, and print an error to stderr
            self._file.close()
