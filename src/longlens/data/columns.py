"""The columns of tokenized documents and of packed rows: arrays of one length, an entry for each token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError, shown_value

Columns = Mapping[str, npt.NDArray[Any]]

CARRIED: dict[str, type[Any]] = {
    "labels": np.int32,
    "token_weights": np.float32,
    "short_logprobs": np.float32,
}
"""Columns that go along with ``input_ids`` through packing, and their types."""
IGNORED = -100
"""Label of a token that is not in the loss, as in torch and transformers."""
NEUTRAL = {"token_weights": 1.0, "short_logprobs": float("nan")}
"""What says nothing of a token: the weight of plain cross-entropy, and no score. Labels are ids and have none."""


def row_types(names: Iterable[str]) -> list[tuple[str, type[Any]]]:
    """The columns of packed rows, in order, and their types.

    Args:
        names: Columns of the documents.
    """
    carried = {name: kind for name, kind in CARRIED.items() if name in set(names) and name != "labels"}
    return list(({"input_ids": np.int32, "labels": np.int32, "position_ids": np.int32} | carried).items())


def size_of(columns: Columns) -> int:
    """How many tokens."""
    return len(columns["input_ids"])


def part_of(columns: Columns, start: int, stop: int) -> Columns:
    """Tokens ``[start, stop)`` of all columns."""
    return {name: values[start:stop] for name, values in columns.items()}


def columns_of(row: Mapping[str, Any], place: str, *, vocabulary: int | None = None) -> Columns:
    """The columns of a row of a tokenized dataset: ``input_ids`` and what is there of `CARRIED`.

    Args:
        row: Lists or arrays by name; other names are passed over.
        place: Where it is, for messages.
        vocabulary: Token ids are below it; what int32 holds unless given.

    Raises:
        UserError: It has no flat list of token ids, columns of other lengths or types, or values that cannot be.
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
                f"{name} of {place} has {len(values)} entries beside {size} input_ids: expected one for each token"
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
    """An array of one of the types that rows have; a null in a column of floats becomes NaN."""
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
