"""The one writer of Parquet files of token rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def open_file(path: Path, mode: str) -> pa.OSFile:
    """A file, by the bytes of its name: pyarrow takes some strings for URIs, and cannot encode all of them."""
    return pa.OSFile(os.fsencode(path), mode)


class Part:
    """A Parquet file that is being written: zstd, checksums of pages, lists of floats split into byte streams, of
    integers as differences.

    Args:
        path: Of the file.
        schema: Its columns.
        statistics: Columns that have statistics; all unless given.

    Raises:
        OSError: It cannot be written, as of all methods.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, statistics: Sequence[str] | None = None) -> None:
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
        """A row group."""
        self._writer.write_table(table, row_group_size=table.num_rows)

    def close(self) -> None:
        """Writes the footer. After an error the file is closed all the same, and is no Parquet file."""
        try:
            self._writer.close()
        finally:
            self._writer.is_open = False  # its __del__ would try once more, and complain on stderr
            self._file.close()
