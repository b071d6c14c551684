"""Makes documents from rows of JSON, JSON Lines, Parquet and Hugging Face datasets, on the Hub or on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from longlens.corpus.document import Document, Spans, check_answer_spans
from longlens.errors import UserError, check_unicode, library_errors, one_line, shown, shown_value, utf8
from longlens.files import ending_of, opened, parse_json
from longlens.runs.jsonl import read_lines
from longlens.settings.options import Reading

if TYPE_CHECKING:
    import pyarrow as pa

JSONL_ENDINGS = frozenset({".jsonl", ".ndjson"})
PARQUET_ENDINGS = frozenset({".parquet"})
TABLE_ENDINGS = frozenset({".csv", ".tsv", ".arrow", ".feather"})
METADATA_CHARACTERS = 1000  # a field goes into the metadata if it is no longer than this as JSON
ROW_NUMBER_DIGITS = 9
MAX_TOKEN_ID = 2**31 - 1
"""Largest token id: ids are stored as int32."""
_BATCH_ROWS = 16


class Row(NamedTuple):
    """A row as it was read.

    Attributes:
        number: Number of the row, from 1; in JSON Lines the line.
        place: Its location, for messages.
        values: The value: a mapping of fields, or any other JSON value.
    """

    number: int
    place: str
    values: Any


def rows_reader(path: Path) -> Callable[[], Iterator[Row]] | None:
    """The reader of a file's rows, selected by its suffix; None for a file that is one text.

    Raises:
        UserError: The file is a table in a format that only the library ``datasets`` reads.
    """
    ending = ending_of(path)
    if ending in TABLE_ENDINGS:
        raise UserError(
            f"{shown(path)} is a table: put it into a folder and pass hf:FOLDER with `split=train`, or write its rows "
            "as JSON Lines (.jsonl)"
        )
    if ending in JSONL_ENDINGS:
        return partial(_jsonl_rows, path)
    if ending == ".json":
        return partial(_json_rows, path)
    # A compressed Parquet file is not text, and the error shows it: its bytes are not UTF-8.
    return partial(_parquet_rows, path) if path.suffix.lower() in PARQUET_ENDINGS else None


def read_answers(path: Path) -> dict[str, Spans]:
    """Answer spans by document id, from a file of rows with ``id`` and ``answer_spans``; other fields are ignored.

    Args:
        path: JSON Lines, or another format by its suffix (see `rows_reader`); it may be the file of the documents.

    Raises:
        UserError: The file cannot be read; a row has invalid answer spans, has no id, or contradicts another row of
            the same document; or no row has answer spans.
    """
    spans: dict[str, Spans] = {}
    for _, place, values in (rows_reader(path) or partial(_jsonl_rows, path))():
        if not isinstance(values, dict):
            raise UserError(f"{place} is {shown_value(values)}, expected an object with id and answer_spans")
        if values.get("answer_spans") is None:
            continue
        id = _id_of_row(values, "", place, Reading())
        if not id:
            raise UserError(f"{place} has answer_spans without an id: add the id of its document")
        found = check_answer_spans(values["answer_spans"], place)
        if spans.setdefault(id, found) != found:
            raise UserError(f"{place} has other answer_spans for document {shown(id)} than a row before: keep one row")
    if not spans:
        raise UserError(
            f'{shown(path)} has no answer_spans: expected rows such as {{"id": "a", "answer_spans": [[4, 9]]}}'
        )
    return spans


def open_dataset(name: str, options: Reading) -> Callable[[], Iterator[Row]]:
    """Finds a dataset immediately, and returns a reader of its rows, which streams if possible.

    Args:
        name: A folder written by ``save_to_disk``, a folder of data files, or a name on the Hub.
        options: Subset and split.

    Raises:
        UserError: The dataset, subset or split does not exist, cannot be reached, or is a folder whose description
            refers to files outside of it.
    """
    if not name:
        raise UserError("hf: has no name after it: write hf:NAME, such as hf:emozilla/govreport-test-tokenized")
    _refuse_files_elsewhere(Path(name))
    with _dataset_errors(name):
        dataset = (_load_saved if _is_saved(Path(name)) else _load)(name, options)
        return partial(_dataset_rows, name, _as_arrow(dataset), shown(f"hf:{name}"))


def _as_arrow(dataset: Any) -> Any:
    """The dataset in Arrow format without unused columns: conversion to Python values would decode images and sound."""
    if dataset.features is not None:
        # Columns of images, sound or dates cost time to read.
        used = [field.name for field in dataset.features.arrow_schema if _is_used(field.type)]
        dataset = dataset.select_columns(used) if used else dataset
    return dataset.with_format("arrow")


def to_documents(
    rows: Iterable[Any], options: Reading | None = None, *, decoder: Callable[[Sequence[int]], str] | None = None
) -> Iterable[Document]:
    """Documents from objects in memory: documents, texts, mappings with fields, or a dataset.

    From a mapping, or a row of a dataset, `Reading.text_field` (or the decoded ``input_ids``), `Reading.id_field` and
    ``answer_spans`` are used; without an id field, the id is ``row#000000012``, counted from 1.

    Args:
        rows: A ``datasets.Dataset`` or ``IterableDataset``, or any iterable of documents, texts and mappings. A list is
            checked completely first, any other iterable while it is read.
        options: Names of the fields, and filters of rows.
        decoder: Decodes ``input_ids`` to text; requires `Reading.tokenized_with`.

    Raises:
        UserError: An item is not a document, a field is missing, or a text is empty.
    """
    options = Reading() if options is None else options
    if options.subset is not None or options.split != Reading().split:
        raise UserError("`subset` and `split` have no effect on documents in memory: remove them")
    if isinstance(rows, (str, bytes, Mapping, Document)) or not isinstance(rows, Iterable):
        raise UserError(
            f"the documents are {shown_value(rows)}, expected a list of documents or a dataset: "
            + ("pass one of its splits" if isinstance(rows, Mapping) else "for files, use read_documents")
        )
    if hasattr(rows, "column_names") and hasattr(rows, "with_format"):
        rows = _checked_dataset(rows, options, decoder)
        return _documents_of(_dataset_rows("in memory", _as_arrow(rows), "the dataset"), options, decoder)
    documents = _documents_of((_to_row(number, item, options) for number, item in enumerate(rows, 1)), options, decoder)
    return list(documents) if isinstance(rows, Sequence) else documents


def _checked_dataset(dataset: Any, options: Reading, decoder: object) -> Any:
    needed = options.text_field if decoder is None else "input_ids"
    if dataset.column_names is not None and needed not in dataset.column_names:
        remedy = "`text_field`" if decoder is None else "rows with input_ids"
        raise _missing_field(dict.fromkeys(dataset.column_names), needed, "the dataset", remedy)
    return dataset


def _to_row(number: int, item: Any, options: Reading) -> Row | Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Row(number, f"text {number}", {options.text_field: item})
    if not isinstance(item, Mapping):
        raise UserError(
            f"document {number} is a {type(item).__name__} ({shown_value(item)}), expected a Document, a text, or a "
            f"mapping with the field {shown(options.text_field)}"
        )
    return Row(number, f"row {number}", dict(item))


def _documents_of(
    rows: Iterable[Row | Document], options: Reading, decoder: Callable[[Sequence[int]], str] | None
) -> Iterator[Document]:
    documents = (row if isinstance(row, Document) else document_of_row(row, "row", options, decoder) for row in rows)
    return islice((document for document in documents if document is not None), options.samples)


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _refuse_files_elsewhere(folder: Path) -> None:
    """Rejects a local folder whose description makes the library read other files, or request them from a server.

    Raises:
        UserError: The description refers to such files, or is invalid.
    """
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import DatasetCard

    for name in ("README.md", ".huggingface.yaml"):
        path = folder / name
        if not path.is_file():
            continue
        with library_errors(f"cannot read {shown(path)}", "correct or delete it"):
            text = path.read_text(encoding="utf-8")
            # Parsed in the same way as in the library.
            content = yaml.safe_load(text) if name != "README.md" else vars(DatasetCard(text).data)
        configs = content.get("configs") if isinstance(content, dict) else None
        configs = [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []
        for pattern in _texts([[config.get("data_files"), config.get("data_dir")] for config in configs], set()):
            if "://" in pattern or "::" in pattern or pattern.startswith("/") or ".." in Path(pattern).parts:
                raise UserError(
                    f"{shown(path)} refers to data outside of its folder ({shown(pattern)}): download it into the "
                    f"folder, and change data_files in {name}"
                )


def _texts(value: Any, seen: set[int]) -> Iterator[str]:
    """All strings of a YAML value; each list and mapping is visited once, however often aliases repeat it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item, seen)


def _load_saved(name: str, options: Reading) -> Any:
    import datasets

    if options.subset is not None:
        raise UserError(
            f"`subset` is {shown(options.subset)}, but {shown(name)} is a dataset on disk without subsets: remove it"
        )
    dataset = datasets.load_from_disk(name)
    if not isinstance(dataset, datasets.DatasetDict):
        return dataset
    if options.split not in dataset:
        there = ", ".join(shown(split) for split in dataset)
        raise UserError(f"dataset {shown(name)} has no split {shown(options.split)}, it has {there}: pass `split`")
    return dataset[options.split]


def _load(name: str, options: Reading) -> Any:
    import datasets

    streaming = "[" not in options.split  # a part of a split, as in test[:10], cannot be streamed
    try:
        return datasets.load_dataset(name, options.subset, split=options.split, streaming=streaming)
    except NotImplementedError:  # some archives cannot be streamed either
        return datasets.load_dataset(name, options.subset, split=options.split)


def _dataset_rows(name: str, dataset: Any, source: str) -> Iterator[Row]:
    rows = (values for table in dataset.iter(batch_size=_BATCH_ROWS) for values in _python_rows(table))
    yield from _numbered(rows, source, lambda number: _dataset_errors(name, f", from row {number} on"))


def _numbered(
    rows: Iterator[dict[str, Any]], source: str, guard: Callable[[int], AbstractContextManager[None]]
) -> Iterator[Row]:
    """Yields rows with their numbers; an error while reading row n is raised inside ``guard(n)``."""
    for number in count(1):
        with guard(number):
            values = next(rows, None)
        if values is None:
            return
        yield Row(number, f"row {number} of {source}", values)


@contextmanager
def _dataset_errors(name: str, where: str = "") -> Iterator[None]:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's, whichever it was built on

    dataset = f"dataset {shown(name)}"
    # The library raises the errors of its readers: ValueError for an invalid split, EOFError for a truncated file.
    with library_errors(f"cannot read {dataset}{where}", "check its files, the name, `subset` and `split`"):
        try:
            yield
        except DatasetNotFoundError as error:
            raise UserError(
                f"{dataset} is neither a folder nor on the Hub, or you have no access to it: {one_line(error)}"
            ) from error
        except (ConnectionError, HTTPError) as error:
            raise UserError(
                f"{dataset} is not a local folder, and the Hub cannot be reached: {one_line(error)}: "
                "check the network, or pass hf:FOLDER of a copy"
            ) from error


_NOT_ROWS = "correct the line, or rename the file to .txt if it is a text"
_NOT_JSON_ROWS = "expected an array of objects, or JSON Lines; rename the file to .txt if it is a text"


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for line in read_lines(path, step=_NOT_ROWS):
        yield Row(line.number, line.place, line.value)


def _json_rows(path: Path) -> Iterator[Row]:
    """Rows of an array of objects, which is parsed at once, or else of JSON Lines, which many .json files contain."""
    with opened(path) as file:
        data = file.read(2**12)
        if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            data += file.read()
            items = parse_json(utf8(data, shown(path)), shown(path), _NOT_JSON_ROWS)
            for number, value in enumerate(items, start=1):
                yield Row(number, f"item {number} of {shown(path)}", value)
            return
    for line in read_lines(path, step=_NOT_JSON_ROWS):
        yield Row(line.number, line.place, line.value)


def _parquet_rows(path: Path) -> Iterator[Row]:
    source = shown(path)

    def guard(number: int) -> AbstractContextManager[None]:
        return library_errors(f"cannot read {source} as Parquet, from row {number} on", "write the file again")

    yield from _numbered(_rows_of_parquet(path), source, guard)


def _rows_of_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    # Without these two options a whole row group, often the whole file, is read into memory.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True) as file:
        columns = [field.name for field in file.schema_arrow if _is_used(field.type)]
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
            yield from _python_rows(batch)


def _is_used(kind: pa.DataType) -> bool:
    """Whether a column can contain text, ids, spans or metadata: not dates, images or sound, nor lists of them."""
    import pyarrow as pa

    while isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return not any(_is_bytes(field.type) for field in kind)
    return not pa.types.is_temporal(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in types)


def _python_rows(table: Any) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow table or batch, converted one at a time.

    Arrow adds to each struct all keys of the structs in other rows, with null values. Nulls are removed at any depth,
    because an original null cannot be distinguished from an added one. Dates and bytes inside structs are removed.
    """
    for at in range(table.num_rows):
        row = table.slice(at, 1)
        row.validate(full=True)  # a damaged file can have offsets that lead out of its memory
        yield {name: _python_value(column[0]) for name, column in zip(row.schema.names, row.columns, strict=True)}


def _python_value(scalar: pa.Scalar) -> Any:
    import pyarrow as pa

    kind = scalar.type
    if not scalar.is_valid:
        return None
    if isinstance(kind, pa.JsonType):
        return parse_json(scalar.as_py(), "a JSON value", "correct the dataset")
    if isinstance(kind, pa.BaseExtensionType):
        return _python_value(scalar.value)
    if pa.types.is_struct(kind):
        fields = [field.name for field in kind if not (pa.types.is_temporal(field.type) or _is_bytes(field.type))]
        return {name: _python_value(scalar[name]) for name in fields if scalar[name].is_valid}
    if isinstance(scalar, pa.ListScalar) and _is_nested(kind.value_type):
        return [_python_value(value) for value in scalar]
    return scalar.as_py()


def _is_nested(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType)


def document_of_row(
    row: Row, source_id: str, options: Reading, decoder: Callable[[Sequence[int]], str] | None
) -> Document | None:
    """Makes a document from a row, or None if it has too few tokens (`Reading.min_tokens`).

    Args:
        row: The row.
        source_id: Id of the file or dataset, from which the id of a row without an id field is made.
        options: Fields and filters.
        decoder: Decodes ``input_ids`` to text; None if rows contain text.

    Raises:
        UserError: A field is missing, or its value is invalid.
    """
    number, place, values = row
    if not isinstance(values, dict):
        raise UserError(
            f'{place} is a JSON {type(values).__name__}, expected an object such as {{"text": "…"}}: {_NOT_ROWS}'
        )
    token_ids = None
    if decoder is None:
        text = _text_of_row(values, place, options)
    else:
        token_ids = _token_ids_of_row(values, place)
        if options.min_tokens is not None and len(token_ids) < options.min_tokens:
            return None
        with library_errors(f"{place} cannot be decoded", "pass the tokenizer that made the rows"):
            text = decoder(token_ids)
    if not text or text.isspace():
        raise UserError(f"{place} has an empty text: remove the row, or pass another `text_field`")
    check_unicode(text, f"the text of {place}", "replace it")
    spans = values.get("answer_spans")
    taken = {options.text_field, options.id_field, "input_ids", "answer_spans"}
    return Document(
        id=_id_of_row(values, f"{source_id}#{number:0{ROW_NUMBER_DIGITS}}", place, options),
        text=text,
        token_ids=token_ids,
        answer_spans=None if spans is None else check_answer_spans(spans, place, len(text)),
        metadata={name: value for name, value in values.items() if name not in taken and _is_small(name, value, place)},
    )


def _text_of_row(row: Mapping[str, Any], place: str, options: Reading) -> str:
    text = row.get(options.text_field)
    if isinstance(text, str):
        return text
    if text is not None:
        raise UserError(
            f"{place} has a {type(text).__name__} in the field {shown(options.text_field)}, expected a string: "
            "pass the field that contains the text with `text_field`"
        )
    if "input_ids" in row:
        raise UserError(
            f"{place} has input_ids but no field {shown(options.text_field)}: pass `tokenized_with`, or `text_field`"
        )
    raise _missing_field(row, options.text_field, place, "`text_field`")


def _missing_field(row: Mapping[str, Any], name: str, place: str, remedy: str) -> UserError:
    there = ", ".join(shown(str(key)) for key in list(row)[:10]) + (", …" if len(row) > 10 else "")
    state = "is null in" if name in row else "is missing in"
    return UserError(f"the field {shown(name)} {state} {place}, which has {there or 'no field'}: pass {remedy}")


def _token_ids_of_row(row: Mapping[str, Any], place: str) -> tuple[int, ...]:
    ids = row.get("input_ids")
    if ids is None:
        raise _missing_field(row, "input_ids", place, "tokenized rows, or remove `tokenized_with`")
    if not isinstance(ids, list) or not all(type(id) is int and 0 <= id <= MAX_TOKEN_ID for id in ids):
        raise UserError(
            f"input_ids of {place} is {shown_value(ids)}, expected a flat list of integers from 0 to 2^31 - 1"
        )
    return tuple(ids)


def _id_of_row(row: Mapping[str, Any], numbered_id: str, place: str, options: Reading) -> str:
    value = row.get(options.id_field)
    if value is None:
        if options.id_field != Reading().id_field:
            raise _missing_field(row, options.id_field, place, "`id_field`, or remove it to number the rows")
        return numbered_id
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise UserError(
            f"{place} has a {type(value).__name__} in the field {shown(options.id_field)}, "
            "expected a string or an integer: pass `id_field`"
        )
    id = str(value)
    check_unicode(id, f"the id of {place}", "replace it")
    return id


def _is_small(name: str, value: Any, place: str) -> bool:
    if isinstance(value, (str, list, dict)) and len(value) > METADATA_CHARACTERS:
        return False
    try:
        content = json.dumps({name: value}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # dates, bytes and the like
        return False
    check_unicode(content, f"the field {shown(name)} of {place}", "replace it")
    return len(content) <= METADATA_CHARACTERS
