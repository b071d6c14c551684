"""Columns of tokens, and folders of their rows: a manifest, Parquet shards that are committed together, and counts.

::

    OUT/manifest.json               kind, settings, versions; written first; a different recipe is rejected
    OUT/data/train-00000.parquet    rows; `datasets.load_dataset("OUT")` reads them
    OUT/counts.json                 counts of documents and tokens; written last: if it exists, the dataset is complete
    OUT/.work/                      state of an interrupted run; deleted at the end

Processes that torchrun started share the work by units: chunks of consecutive documents, or the sources of a mixture. A
completed unit is in ``.work``, whichever process made it, and the first process joins all units; so rows and files do
not depend on the number of processes.

The columns of a document or a row are arrays of one length, with one entry per token.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count, groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longlens.errors import UserError, library_errors, shown_value
from longlens.files import cannot_write, read_json, write_json
from longlens.runs.folder import (
    MANIFEST,
    LockedFolder,
    await_manifest,
    check_schema_version,
    differences,
    make_manifest,
    refuse_other,
    warn_of_versions,
)
from longlens.runs.parts import PartWriter, open_file
from longlens.runs.processes import Processes

if TYPE_CHECKING:
    from datasets import Dataset

Columns = Mapping[str, npt.NDArray[Any]]
Row = dict[str, npt.NDArray[Any]]

CARRIED: dict[str, type[Any]] = {
    "labels": np.int32,
    "token_weights": np.float32,
    "short_logprobs": np.float32,
}
"""Columns that are packed together with ``input_ids``, and their types."""
CHUNK_CHARACTERS = 2**24
"""Characters per chunk of documents, about 4 million tokens; a longer document is a separate chunk."""
COUNTS = "counts.json"
IGNORED = -100
"""Label of a token that is not in the loss, as in torch and transformers."""
NEUTRAL = {"token_weights": 1.0, "short_logprobs": float("nan")}
"""Neutral values of a token: the weight of plain cross-entropy, and no score. Labels have no neutral value."""


def token_types(names: Iterable[str]) -> list[tuple[str, type[Any]]]:
    """The columns of packed rows, in order, and their types.

    Args:
        names: Columns of the documents.
    """
    carried = {name: kind for name, kind in CARRIED.items() if name in set(names) and name != "labels"}
    return list(({"input_ids": np.int32, "labels": np.int32, "position_ids": np.int32} | carried).items())


def size_of(columns: Columns) -> int:
    """Number of tokens."""
    return len(columns["input_ids"])


def part_of(columns: Columns, start: int, stop: int) -> Columns:
    """Tokens ``[start, stop)`` of all columns."""
    return {name: values[start:stop] for name, values in columns.items()}


def read_columns(row: Mapping[str, Any], place: str, *, vocabulary: int | None = None) -> Columns:
    """The columns of a row of a tokenized dataset: ``input_ids`` and those of `CARRIED` that exist.

    Args:
        row: Lists or arrays by name; other names are ignored.
        place: Location of the row, for messages.
        vocabulary: Exclusive upper bound on token ids; by default that of int32.

    Raises:
        UserError: The row has no flat list of token ids, has columns of other lengths or types, or has invalid values.
    """
    ids = row.get("input_ids")
    if ids is None:
        raise UserError(f"{place} has no input_ids, it has {', '.join(map(repr, row)) or 'nothing'}: tokenize it first")
    found: dict[str, npt.NDArray[Any]] = {}
    for name, kind in ({"input_ids": np.int32} | CARRIED).items():
        if row.get(name) is not None:
            found[name] = _column(row[name], kind, f"{name} of {place}")
    size = len(found["input_ids"])
    for name, values in found.items():
        if len(values) != size:
            raise UserError(
                f"{name} of {place} has {len(values)} entries for {size} input_ids: expected one for each token"
            )
    _check_ids(found["input_ids"], vocabulary, f"input_ids of {place}")
    if "labels" in found:
        _check_ids(found["labels"][found["labels"] != IGNORED], vocabulary, f"labels of {place}")
    if "token_weights" in found:
        weights = found["token_weights"]
        _refuse(weights[~(np.isfinite(weights) & (weights >= 0))], f"token_weights of {place}", "a number of 0 or more")
    if "short_logprobs" in found:
        logprobs = found["short_logprobs"]
        _refuse(logprobs[logprobs > 0], f"short_logprobs of {place}", "a log-probability of 0 or less, or null")
    return found


def _refuse(wrong: npt.NDArray[Any], what: str, expected: str) -> None:
    if len(wrong):
        raise UserError(f"{what} has {wrong[0]}, expected {expected}: correct the row")


def _column(values: Any, kind: type[Any], what: str) -> npt.NDArray[Any]:
    """Converts to an array of a column's type; a null in a column of floats becomes NaN."""
    is_float = np.issubdtype(kind, np.floating)
    try:
        array = np.asarray(values)
        if is_float and array.dtype == object:
            array = np.array([np.nan if value is None else value for value in array])
    except (TypeError, ValueError, OverflowError):  # lists of unequal lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.size and array.dtype.kind not in ("iuf" if is_float else "iu")):
        expected = "numbers" if is_float else "integers"
        raise UserError(f"{what} is {shown_value(values)}, expected a flat list of {expected}: correct the row")
    if not is_float and array.size and not np.iinfo(kind).min <= array.min() <= array.max() <= np.iinfo(kind).max:
        raise UserError(f"{what} has a number beyond int32, as no token id is: correct the row")
    return array.astype(kind)


def _check_ids(ids: npt.NDArray[Any], vocabulary: int | None, what: str) -> None:
    if not len(ids) or (ids.min() >= 0 and (vocabulary is None or ids.max() < vocabulary)):
        return
    wrong = ids.min() if ids.min() < 0 else ids.max()
    known = "are 0 or more" if vocabulary is None else f"of this tokenizer are 0 to {vocabulary - 1}"
    raise UserError(f"{what} has {wrong}, and token ids {known}: name the tokenizer that made the rows")


Item = TypeVar("Item")


class DatasetFolder:
    """The one writer of a dataset's folder, under an OS lock; each process that shares it has its own lock.

    Args:
        folder: A new folder, or one of the same dataset.
        kind: Kind of dataset, such as ``packed``.
        settings: Settings that identify the dataset.
        processes: Connected processes that share the folder; each creates this object and calls its methods in the same
            order.

    Attributes:
        counts: Counts of a dataset that is complete already; else None.

    Raises:
        UserError: Another process is writing there, or the folder contains something else or was made with other
            settings.
    """

    def __init__(
        self, folder: Path, kind: str, settings: Mapping[str, Any], processes: Processes | None = None
    ) -> None:
        self.folder, self.work = folder, folder / ".work"
        self.processes = Processes.alone() if processes is None else processes
        manifest = make_manifest({"kind": kind, "settings": dict(settings)}, "datasets")
        found = {}
        if self.processes.rank > 0:
            found = self.processes.receive()
            await_manifest(folder, self.processes.rank)
        self._own = LockedFolder(folder, "dataset", own={".work"}, example="packed", rank=self.processes.rank)
        try:
            self._claim(manifest)
            if self.processes.rank == 0:
                found = {"counts": read_json(folder / COUNTS) if (folder / COUNTS).exists() else None}
                self.processes.broadcast(found)
        except BaseException:
            self._own.release()
            raise
        self.counts: dict[str, Any] | None = found["counts"]

    def _claim(self, manifest: dict[str, Any]) -> None:
        path = self.folder / MANIFEST
        have = read_json(path) if path.exists() else None
        if self.processes.rank == 0 and (have is None or ("kind" in have and not self._committed())):
            write_json(path, manifest)
            return
        assert have is not None
        there, here = ({"kind": m.get("kind"), **_settings_of(m, path)} for m in (have, manifest))
        refuse_other(self.folder, "dataset", differences(there, here))
        if not (self.folder / COUNTS).exists():
            warn_of_versions(self.folder, have, manifest["versions"])

    def _committed(self) -> bool:
        """Whether there is any state from which another run could resume."""
        others = {entry.name for entry in self.folder.iterdir()} - {MANIFEST, ".lock", ".work"}
        return bool(others) or any(self.work.glob(f"*/{COUNTS}"))

    def write(self, name: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
        """Writes rows to shards of the folder ``name``, which is created when all shards are complete.

        Raises:
            UserError: The disk is full or the folder cannot be written; ``name`` is deleted in this case.
        """
        self._own.check()
        target = self.folder / name
        temporary = target.with_name(f".{target.name}.tmp")
        for left in (temporary, target):  # left by a run that was killed before it wrote its counts
            shutil.rmtree(left, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            number = count()
            with PartWriter(
                temporary, schema, counted="input_ids", name=lambda: f"train-{next(number):05d}.parquet"
            ) as shards:
                for row in rows:
                    shards.add(row)
            self._own.check()
            os.rename(temporary, target)
        except OSError as error:
            raise cannot_write(target, error, resumes=True) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_chunks(
        self,
        name: str,
        items: Iterable[Item],
        schema: pa.Schema,
        *,
        characters: Callable[[Item], int],
        rows: Callable[[Iterable[Item], dict[str, Any]], Iterable[Mapping[str, Any]]],
    ) -> list[Path]:
        """Makes rows of items in chunks, which are distributed over the processes; a completed chunk is not made again.

        Args:
            name: Name of the chunks, in ``.work``.
            items: Items such as documents, the same in every process.
            schema: Schema of the rows.
            characters: Function that returns an item's characters, which determine where a chunk ends.
            rows: Function that returns the rows of a chunk's items and adds to the counts for its ``counts.json``.

        Returns:
            Folders of all chunks in order, each with its shards and ``counts.json``; returned in each process when all
            are complete.
        """
        draw = self.processes.counter()
        turn, number = draw(), -1
        self.work.mkdir(exist_ok=True)
        for number, chunk in groupby(_chunk_numbers(items, characters), key=lambda pair: pair[0]):
            if number != turn:
                continue
            folder = self._chunk(name, number)
            if not (folder / COUNTS).is_file():
                counts: dict[str, Any] = {}
                self.write(f".work/{folder.name}", rows((item for _, item in chunk), counts), schema)
                write_json(folder / COUNTS, counts)
            turn = draw()
        self.processes.wait_for_all()
        return [self._chunk(name, at) for at in range(number + 1)]

    def _chunk(self, name: str, number: int) -> Path:
        return self.work / f"{name}-{number:06d}"

    def join(self, name: str, chunks: Iterable[Path]) -> None:
        """Makes the folder ``name`` from the shards of all chunks, in order.

        Raises:
            UserError: The disk is full or the folder cannot be written.
        """
        self._own.check()
        target = self.folder / name
        temporary = target.with_name(f".{name}.tmp")
        for left in (temporary, target):
            shutil.rmtree(left, ignore_errors=True)
        try:
            temporary.mkdir()
            shards = (shard for chunk in chunks for shard in sorted(chunk.glob("train-*.parquet")))
            for number, shard in enumerate(shards):
                joined = temporary / f"train-{number:05d}.parquet"
                with suppress(OSError):  # on a file system without hard links
                    os.link(shard, joined)
                    continue
                shutil.copyfile(shard, joined)
            os.rename(temporary, target)
        except OSError as error:
            raise cannot_write(target, error, resumes=True) from error

    def finish(self, counts: Mapping[str, Any] | None) -> dict[str, Any]:
        """The first process writes the counts, and deletes what only an interrupted run would need.

        Args:
            counts: Counts, in the first process; the others wait for them.

        Returns:
            The counts.

        Raises:
            UserError: The folder was deleted in the meantime, or cannot be written.
        """
        if self.processes.rank > 0:
            self.counts = self.processes.receive()
            return self.counts
        assert counts is not None
        self._own.check()
        write_json(self.folder / COUNTS, counts)
        shutil.rmtree(self.work, ignore_errors=True)
        self.counts = dict(counts)
        self.processes.broadcast(self.counts)
        return self.counts

    def __enter__(self) -> DatasetFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error, no file may remain that binds the folder to settings for which no output exists.
        if error is not None and self.processes.rank == 0 and self._own.is_there and not self._committed():
            shutil.rmtree(self.work, ignore_errors=True)
            (self.folder / MANIFEST).unlink(missing_ok=True)
        self._own.release()


def _chunk_numbers(items: Iterable[Item], characters: Callable[[Item], int]) -> Iterator[tuple[int, Item]]:
    """Each item with the number of its chunk."""
    number = filled = 0
    for item in items:
        size = characters(item)
        if filled and filled + size > CHUNK_CHARACTERS:
            number, filled = number + 1, 0
        filled += size
        yield number, item


def schema_of(names: Iterable[str], *more: tuple[str, pa.DataType]) -> pa.Schema:
    """Schema of packed rows.

    Args:
        names: Columns of the documents.
        more: Further columns, before the others.
    """
    lists = [(name, pa.list_(pa.from_numpy_dtype(np.dtype(kind)))) for name, kind in token_types(names)]
    return pa.schema([*more, *lists])


def to_dataset(rows: Iterable[Mapping[str, Any]], types: Iterable[tuple[str, type[Any]]]) -> Dataset:
    """Rows as a `datasets.Dataset`.

    Args:
        rows: Columns of tokens.
        types: Their names and types.

    Raises:
        UserError: The error of the rows.
    """
    import datasets

    features = {name: datasets.List(datasets.Value(np.dtype(kind).name)) for name, kind in types}
    # The fingerprint is passed, since the library would otherwise hash the generator and everything it references.
    try:
        return datasets.Dataset.from_generator(
            lambda: rows, features=datasets.Features(features), fingerprint=uuid.uuid4().hex
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):  # wrapped by the library
            raise error.__cause__ from None
        raise


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of shards, in order, one by one; lists as NumPy arrays.

    Raises:
        UserError: A shard is broken.
    """
    for batch in _batches(folder, 1):
        yield {name: _value(batch.column(name)[0]) for name in batch.schema.names}


def check_rows(folder: Path, vocabulary: int) -> None:
    """Reads all shards of a folder and checks what training relies on, checksums first.

    Args:
        folder: Folder with the shards.
        vocabulary: Exclusive upper bound on token ids.

    Raises:
        UserError: A shard is broken; lists of a row have nulls or differ in length; an id is not in the vocabulary.
    """
    number = 0
    for batch in _batches(folder, 1024):
        table = {name: batch.column(name) for name, _ in token_types(batch.schema.names) if name in batch.schema.names}
        rows = f"rows {number + 1} to {number + batch.num_rows} of {folder}"
        number += batch.num_rows
        lists = {name: column for name, column in table.items() if pa.types.is_list(column.type)}
        if "input_ids" not in lists or lists["input_ids"].null_count:
            raise UserError(f"{rows} have no input_ids in each row: make the rows again")
        sizes = lists["input_ids"].value_lengths()
        for name, column in lists.items():
            if name == "position_ids" and column.null_count == len(column):  # conversations that are not packed
                continue
            values = column.flatten()
            if not column.value_lengths().equals(sizes) or values.null_count:
                raise UserError(f"{name} of {rows} has nulls, or not one entry for each token: make the rows again")
            if name in ("input_ids", "labels"):
                ids = values.to_numpy(zero_copy_only=False)
                wrong = (ids >= vocabulary) | (ids < 0) & ((ids != IGNORED) | (name == "input_ids"))
                if wrong.any():
                    raise UserError(
                        f"{name} of {rows} has {ids[wrong][0]}, and the tokenizer has the ids 0 to {vocabulary - 1}: "
                        "make the rows with the model's own tokenizer"
                    )


def count_documents(folder: Path) -> tuple[int, int]:
    """Number of rows in all shards of a folder, and of documents in them; one per row if rows have no positions."""
    rows = documents = 0
    for batch in _batches(folder, 1024):
        rows += batch.num_rows
        column = batch.column("position_ids") if "position_ids" in batch.schema.names else None
        if column is None or column.null_count == len(column):  # conversations that are not packed
            documents += batch.num_rows
        else:
            documents += int((column.flatten().to_numpy() == 0).sum())
    return rows, documents


def _batches(folder: Path, size: int) -> Iterator[pa.RecordBatch]:
    for path in sorted(folder.glob("train-*.parquet")):
        batches = _read_shard(path, size)
        while True:
            with library_errors(f"{path} is broken", f"delete {folder} and run the same command again"):
                batch = next(batches, None)
            if batch is None:
                break
            yield batch


def _read_shard(path: Path, size: int) -> Iterator[pa.RecordBatch]:
    with open_file(path, "rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        for batch in parquet.iter_batches(batch_size=size):
            batch.validate(full=True)
            yield batch


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a dataset that longlens made, None for other folders.

    Raises:
        UserError: It is broken, or the dataset is incomplete.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json(path)
    if "kind" not in manifest:
        return None
    if not isinstance(manifest["kind"], str):
        raise UserError(f"{path} is broken (kind is {shown_value(manifest['kind'])}): make the dataset again")
    if "schema_version" in manifest:  # a dataset may come from elsewhere
        check_schema_version(path, manifest)
    _settings_of(manifest, path)
    if not (folder / COUNTS).is_file():
        raise UserError(f"{folder} is not complete: run the command that makes it again, it resumes from there")
    return manifest


def _settings_of(manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    settings = manifest.get("settings")
    if settings is not None and not isinstance(settings, dict):
        raise UserError(f"{path} is broken (settings is {shown_value(settings)}): make the dataset again")
    return settings or {}


def _value(scalar: pa.Scalar) -> Any:
    if not pa.types.is_list(scalar.type):
        return scalar.as_py()
    return None if scalar.values is None else scalar.values.to_numpy(zero_copy_only=False)
