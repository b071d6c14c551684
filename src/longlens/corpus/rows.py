"""Rows that become documents: of JSON Lines, Parquet and Hugging Face datasets, on the Hub or on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from longlens.corpus.document import Document
from longlens.corpus.options import ReadOptions
from longlens.errors import UserError, check_unicode, one_line, shown
from longlens.runs.jsonl import read_lines

JSONL_ENDINGS = frozenset({".jsonl", ".ndjson"})
PARQUET_ENDINGS = frozenset({".parquet"})
METADATA_CHARACTERS = 1000  # a field goes into the metadata if it is no longer than this as JSON
ROW_NUMBER_DIGITS = 9


class Row(NamedTuple):
    """A row as it was read.

    Attributes:
        number: Which one it is, from 1; of JSON Lines the line.
        place: Where it is, for messages.
        values: What was found: a mapping of fields, or anything else that JSON can hold.
    """

    number: int
    place: str
    values: Any


def rows_reader(path: Path) -> Callable[[], Iterator[Row]] | None:
    """What reads the rows of a file, chosen by its ending; None for a file that is one text."""
    ending = path.suffix.lower()
    if ending in JSONL_ENDINGS:
        return partial(_jsonl_rows, path)
    return partial(_parquet_rows, path) if ending in PARQUET_ENDINGS else None


def open_dataset(name: str, options: ReadOptions) -> Callable[[], Iterator[Row]]:
    """Finds a dataset at once, and gives what reads its rows, as a stream where that is possible.

    Args:
        name: A folder that ``save_to_disk`` wrote, a folder of data files, or a name on the Hub.
        options: Says the subset and the split.

    Raises:
        UserError: There is none of that name, subset or split, or it cannot be reached.
    """
    if not name:
        raise UserError("hf: has no name after it: write hf:NAME, such as hf:emozilla/govreport-test-tokenized")
    with _dataset_errors(name):
        dataset = (_load_saved if _is_saved(Path(name)) else _load)(name, options)
        # Drops a format such as torch that it was saved with: rows are plain Python values.
        return partial(_dataset_rows, name, dataset.with_format(None))


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _load_saved(name: str, options: ReadOptions) -> Any:
    import datasets

    if options.subset is not None:
        raise UserError(
            f"--subset {shown(options.subset)}: a dataset on disk has none, and {shown(name)} is one: leave it out"
        )
    dataset = datasets.load_from_disk(name)
    if not isinstance(dataset, datasets.DatasetDict):
        return dataset
    if options.split not in dataset:
        there = ", ".join(shown(split) for split in dataset)
        raise UserError(f"dataset {shown(name)} has no split {shown(options.split)}, it has {there}: pass --split")
    return dataset[options.split]


def _load(name: str, options: ReadOptions) -> Any:
    import datasets

    streaming = "[" not in options.split  # a part of a split, as in test[:10], cannot be streamed
    try:
        return datasets.load_dataset(name, options.subset, split=options.split, streaming=streaming)
    except NotImplementedError:  # nor can some archives
        return datasets.load_dataset(name, options.subset, split=options.split)


def _dataset_rows(name: str, dataset: Any) -> Iterator[Row]:
    with _dataset_errors(name):
        for number, values in enumerate(dataset, start=1):
            yield Row(number, f"row {number} of {shown(f'hf:{name}')}", values)


@contextmanager
def _dataset_errors(name: str) -> Iterator[None]:
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's, whichever it was built on
    from pyarrow import ArrowException

    dataset = f"dataset {shown(name)}"
    try:
        yield
    except UserError:
        raise
    except DatasetNotFoundError as error:
        raise UserError(
            f"{dataset} is neither a folder nor on the Hub, or not open to you: {one_line(error)}"
        ) from error
    except (ConnectionError, HTTPError) as error:
        raise UserError(
            f"{dataset} is no folder here, and the Hub cannot be reached: {one_line(error)}: "
            "check the network, or pass hf:FOLDER of a copy"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, DatasetsError, ArrowException) as error:
        # The library has no narrower types: a bad subset or split is a ValueError, a script a RuntimeError, a broken
        # description on disk a KeyError or TypeError.
        raise UserError(f"cannot read {dataset}: {one_line(error)}: check the name, --subset and --split") from error


_NOT_ROWS = "correct the line, or rename the file to .txt if it is a text"


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for line in read_lines(path, step=_NOT_ROWS):
        yield Row(line.number, line.place, line.value)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Without these two a whole row group, often the whole file, is read into memory.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            # Dates and bytes cannot be metadata, and some of them cannot be Python values.
            columns = [column.name for column in file.schema_arrow if not pa.types.is_temporal(column.type)]
            for batch in file.iter_batches(batch_size=16, columns=columns, use_threads=False):
                for index in range(batch.num_rows):
                    values = batch.slice(index, 1).to_pylist()[0]
                    number += 1
                    yield Row(number, f"row {number} of {shown(path)}", values)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"cannot read {shown(path)} as Parquet, from row {number + 1} on: {one_line(error)}: write the file anew"
        ) from error


def document_of_row(
    row: Row, source_id: str, options: ReadOptions, decoder: Callable[[Sequence[int]], str] | None
) -> Document | None:
    """Makes a document of a row, or None of one with too few tokens (`ReadOptions.min_tokens`).

    Args:
        row: The row.
        source_id: The id of its file or dataset, from which a row without an id has its own.
        options: Fields and filters.
        decoder: Turns ``input_ids`` into text; None where rows hold text.

    Raises:
        UserError: A field is missing, or its value is not what it should be.
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
        text = decoder(token_ids)
    if not text or text.isspace():
        raise UserError(f"{place} has an empty text: remove the row, or pass another --text-field")
    check_unicode(text, f"the text of {place}", "replace it")
    taken = {options.text_field, options.id_field, "input_ids", "answer_spans"}
    return Document(
        id=_id_of_row(values, f"{source_id}#{number:0{ROW_NUMBER_DIGITS}}", place, options),
        text=text,
        token_ids=token_ids,
        answer_spans=_answer_spans(values.get("answer_spans"), len(text), place),
        metadata={name: value for name, value in values.items() if name not in taken and _is_small(name, value, place)},
    )


def _text_of_row(row: Mapping[str, Any], place: str, options: ReadOptions) -> str:
    text = row.get(options.text_field)
    if isinstance(text, str):
        return text
    if text is not None:
        raise UserError(
            f"{place} has a {type(text).__name__} in the field {shown(options.text_field)}, expected a string: "
            "pass the field that holds the text with --text-field"
        )
    if "input_ids" in row:
        raise UserError(
            f"{place} has input_ids and no field {shown(options.text_field)}: "
            "pass --tokenized-with TOKENIZER, or --text-field"
        )
    raise _missing_field(row, options.text_field, place, "--text-field")


def _missing_field(row: Mapping[str, Any], name: str, place: str, remedy: str) -> UserError:
    there = ", ".join(shown(str(key)) for key in list(row)[:10]) + (", …" if len(row) > 10 else "")
    state = "is null in" if name in row else "is missing in"
    return UserError(f"the field {shown(name)} {state} {place}, which has {there or 'no field'}: pass {remedy}")


def _token_ids_of_row(row: Mapping[str, Any], place: str) -> tuple[int, ...]:
    ids = row.get("input_ids")
    if ids is None:
        raise _missing_field(row, "input_ids", place, "tokenized rows, or leave out --tokenized-with")
    if not isinstance(ids, list) or not all(type(id) is int and id >= 0 for id in ids):
        raise UserError(f"input_ids of {place} is not a flat list of token ids: expected integers, none below 0")
    return tuple(ids)


def _id_of_row(row: Mapping[str, Any], numbered_id: str, place: str, options: ReadOptions) -> str:
    value = row.get(options.id_field)
    if value is None:
        if options.id_field != ReadOptions().id_field:
            raise _missing_field(row, options.id_field, place, "--id-field, or leave it out to number the rows")
        return numbered_id
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise UserError(
            f"{place} has a {type(value).__name__} in the field {shown(options.id_field)}, "
            "expected a string or an integer: pass --id-field"
        )
    id = str(value)
    check_unicode(id, f"the id of {place}", "replace it")
    return id


def _answer_spans(value: Any, characters: int, place: str) -> tuple[tuple[int, int], ...] | None:
    if value is None:
        return None
    spans = value if isinstance(value, list) else [value]
    for span in spans:
        pair = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
        if not pair or not 0 <= span[0] <= span[1] <= characters:
            raise UserError(
                f"answer_spans of {place} has {repr(span)[:100]}, "
                f"expected [start, end) in characters with 0 <= start <= end <= {characters}: mend the row"
            )
    return tuple((start, end) for start, end in spans)


def _is_small(name: str, value: Any, place: str) -> bool:
    if isinstance(value, (str, list, dict)) and len(value) > METADATA_CHARACTERS:
        return False
    try:
        content = json.dumps({name: value}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # dates, bytes and the like
        return False
    check_unicode(content, f"the field {shown(name)} of {place}", "replace it")
    return len(content) <= METADATA_CHARACTERS
