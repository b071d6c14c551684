"""Sources of documents: their kinds, their tokenizer, and conversion of texts to tokenized documents."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longlens.corpus import Document, read_documents
from longlens.corpus.files import STDLIB, files_of_folder, module_files
from longlens.corpus.rows import JSONL_ENDINGS, PARQUET_ENDINGS, Row, open_dataset, rows_reader
from longlens.data.recipe import MixtureSource
from longlens.data.store import NEUTRAL, Columns, read_columns, read_manifest
from longlens.errors import UserError, shown, shown_value, system_errors
from longlens.files import cannot_write
from longlens.settings.options import Reading

BATCH = 64
"""Number of documents tokenized at a time, in parallel by the tokenizer's threads; does not affect the result."""
BATCH_CHARACTERS = 2**21
"""Maximum characters per batch, since a tokenizer needs a few hundred bytes per token."""


class Framing:
    """A tokenizer, and the special tokens around each document: ``[BOS] + ids + [EOS]``.

    A BOS or EOS that the tokenizer lacks, or that a tokenized document already has, is not added. An added token has
    its id as label, weight 1 and no short log-probability.

    Attributes:
        bos: The id before each document; None for none.
        eos: The id after each document; None for none.
        tokenizer_sha256: Hash of the tokenizer, see `longlens.tokenization.TextEncoder`.
        vocabulary: Its ids are below this number.
    """

    def __init__(self, tokenizer: Any, *, bos: bool = True, eos: bool = True) -> None:
        from longlens.tokenization import TextEncoder, vocabulary_size

        self._tokenizer = tokenizer
        self.vocabulary = vocabulary_size(tokenizer)
        self.tokenizer_sha256 = TextEncoder(tokenizer).sha256
        self.bos: int | None = tokenizer.bos_token_id if bos else None
        self.eos: int | None = tokenizer.eos_token_id if eos else None

    def encode(self, texts: Sequence[str]) -> list[Columns]:
        """Tokens of texts, no special tokens added."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [{"input_ids": np.array(ids, dtype=np.int32)} for ids in encoded]

    def frame(self, document: Columns) -> Columns:
        """The document with BOS and EOS."""
        ids = document["input_ids"]
        before = [] if self.bos is None or (len(ids) and ids[0] == self.bos) else [self.bos]
        after = [] if self.eos is None or (len(ids) and ids[-1] == self.eos) else [self.eos]
        return {name: _frame_column(values, before, after, NEUTRAL.get(name)) for name, values in document.items()}

    def frame_row(self, row: Row) -> Columns:
        """The document of a tokenized row, with BOS and EOS.

        Raises:
            UserError: The row has no tokens of this tokenizer, see `longlens.data.store.read_columns`.
        """
        return self.frame(read_columns(row.values, row.place, vocabulary=self.vocabulary))


def _frame_column(
    values: npt.NDArray[Any], before: Sequence[int], after: Sequence[int], neutral: float | None
) -> npt.NDArray[Any]:
    """The values with those of added tokens around them: their ids, or the neutral value."""
    ends = [ids if neutral is None else [neutral] * len(ids) for ids in (before, after)]
    return np.concatenate([np.array(ends[0], dtype=values.dtype), values, np.array(ends[1], dtype=values.dtype)])


def check_tokenizer(path: str, framing: Framing) -> None:
    """Rejects a tokenized dataset of longlens that another tokenizer made; other datasets cannot be checked.

    Raises:
        UserError: Another tokenizer made it, or the rows are already packed.
    """
    manifest = None if path.startswith("hf:") else read_manifest(Path(path))
    if manifest is None:
        return
    if manifest["kind"] != "weighed":
        kind = shown_value(manifest["kind"])
        raise UserError(f"{path} is already packed (a {kind} of longlens): pass it to the trainer unchanged")
    made = (manifest.get("settings") or {}).get("tokenizer_sha256")
    if made != framing.tokenizer_sha256:
        raise UserError(
            f"{path} was tokenized by another tokenizer (sha256 {shown_value(made)[:13]}…, and here "
            f"{framing.tokenizer_sha256[:12]}…): pass the tokenizer for which it was weighted"
        )


def is_weighed(path: str) -> bool:
    """Whether ``longlens data weigh`` made it."""
    manifest = None if path.startswith("hf:") else read_manifest(Path(path))
    return manifest is not None and manifest["kind"] == "weighed"


def fingerprint(path: str) -> str:
    """Detects changes of files between two runs by their names and sizes: reading them would take as long as mixing."""
    folder = Path(path)
    if path.startswith(STDLIB):
        listed = [f"{name} {file.stat().st_size}" for name, file in module_files(path.removeprefix(STDLIB))]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()
    if path.startswith("hf:") and not Path(path[3:]).exists():
        return path
    folder = Path(path[3:]) if path.startswith("hf:") else folder
    files = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    listed = [f"{file.relative_to(folder)} {file.stat().st_size}" for file in files if file.is_file()]
    return hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()


def read_source(source: MixtureSource, framing: Framing, *, seed: int, scratch: Path) -> Iterator[Columns]:
    """The documents of a source, in order; groups in an order determined by the seed.

    Args:
        source: A source with a path.
        framing: The tokenizer, with the special tokens around a document.
        seed: Seed of the order of groups, by ``sha256(f"{seed}:{group}")``: in alphabetical order, a part of them would
            not be a random sample.
        scratch: Folder for a temporary copy of the texts of a grouped source, which have to be sorted.

    Raises:
        UserError: The source cannot be read, or rows lack requested fields.
    """
    assert source.path is not None
    if source.tokenized:
        rows = read_dataset_rows([source.path], source.reading())
        yield from (framing.frame_row(row) for row in rows)
        return
    read = read_documents([source.path], source.reading())
    texts = (d.text for d in read) if source.group_by is None else _group_texts(read, source, seed, scratch)
    yield from tokenize_texts(texts, framing)


def tokenize_texts(texts: Iterable[str], framing: Framing) -> Iterator[Columns]:
    """Texts, tokenized and framed."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH or sum(map(len, batch)) >= BATCH_CHARACTERS:
            yield from map(framing.frame, framing.encode(batch))
            batch = []
    if batch:
        yield from map(framing.frame, framing.encode(batch))


def read_dataset_rows(sources: Sequence[str], options: Reading) -> Iterator[Row]:
    """Rows of datasets, tokenized or of conversations: ``hf:NAME``, JSON Lines or Parquet files, or folders of such.

    Raises:
        UserError: A source does not exist or has no rows, or a row is not a mapping.
    """
    for source in sources:
        none = True
        for read in _row_readers(source, options):
            for row in read():
                none = False
                if not isinstance(row.values, Mapping):
                    raise UserError(f"{row.place} is a {type(row.values).__name__}, expected an object with fields")
                yield row
        if none:
            raise UserError(f"{shown(source)} is empty, it has no row: leave it out")


def _row_readers(source: str, options: Reading) -> list[Callable[[], Iterator[Row]]]:
    if source.startswith("hf:"):
        return [open_dataset(source[3:], options)]
    path = Path(source)
    if not path.exists():
        raise UserError(f"no such file or folder: {shown(source)}; a dataset on the Hub is written hf:NAME")
    files = [path]
    if path.is_dir():
        is_own = read_manifest(path) is not None  # its other files are known
        with system_errors(path):
            found = files_of_folder(path, JSONL_ENDINGS | PARQUET_ENDINGS, ".jsonl or .parquet", says=not is_own)
        files = sorted(file for _, file in found)
    readers = []
    for file in files:
        reader = rows_reader(file)
        if reader is None:
            raise UserError(f"{shown(file)} is not a .jsonl, .json or .parquet file")
        readers.append(reader)
    return readers


_TEXTS = pa.schema([("group", pa.string()), ("order", pa.string()), ("text", pa.string())])


def _group_texts(documents: Iterable[Document], source: MixtureSource, seed: int, scratch: Path) -> Iterator[str]:
    """Yields one text per group; only the group and order of each document are kept in memory."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder, "texts.arrow")
        keys: list[tuple[bytes, str, str, int]] = []
        try:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _TEXTS) as writer:
                places = (_group_and_order(document, source) | {"text": document.text} for document in documents)
                while batch := list(islice(places, BATCH)):
                    for row in batch:
                        rank = hashlib.sha256(f"{seed}:{row['group']}".encode()).digest()
                        keys.append((rank, row["group"], row["order"], len(keys)))
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_TEXTS))
        except OSError as error:
            raise cannot_write(path, error, resumes=True) from error
        keys.sort()
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as texts:
            for _, group in groupby(keys, key=lambda key: key[:2]):
                yield "\n".join(_text(texts, at) for *_, at in group)


def _text(texts: Any, at: int) -> str:
    text: str = texts.get_batch(at // BATCH).column("text")[at % BATCH].as_py()
    return text


def _group_and_order(document: Document, source: MixtureSource) -> dict[str, str]:
    """The group of a document and its position in it: fields of its row, or folders of its file."""
    assert source.path is not None
    assert source.group_by is not None
    # A file of a folder has the id FOLDER/PATH/IN/IT, see `longlens.corpus.read_documents`.
    parts = Path(document.id).parts[1:]
    if not document.metadata and parts and Path(source.path, *parts).is_file():
        return {"group": parts[0], "order": "/".join(parts[1:])}
    fields = {"group": source.group_by} | ({} if source.order_by is None else {"order": source.order_by})
    for name in fields.values():
        if name not in document.metadata:
            there = ", ".join(map(repr, document.metadata)) or "none"
            raise UserError(f"document {shown(document.id)} has no field {name!r} to group by; its fields: {there}")
    return {"order": ""} | {key: str(document.metadata[name]) for key, name in fields.items()}
