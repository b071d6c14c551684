"""The columns of tokenized documents and of packed rows: arrays of one length, an entry for each token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError

Columns = Mapping[str, npt.NDArray[Any]]

CARRIED: dict[str, type[Any]] = {
    "labels": np.int32,
    "token_weights": np.float32,
    "short_logprobs": np.float32,
}
"""Columns that go along with ``input_ids`` through packing, and their types."""
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


def columns_of(row: Mapping[str, Any], place: str) -> Columns:
    """The columns of a row of a tokenized dataset: ``input_ids`` and what is there of `CARRIED`.

    Args:
        row: Lists or arrays by name; other names are passed over.
        place: Where it is, for messages.

    Raises:
        UserError: It has no flat list of token ids, or columns of other lengths.
    """
    ids = row.get("input_ids")
    if ids is None:
        raise UserError(f"{place} has no input_ids, it has {', '.join(map(repr, row)) or 'nothing'}: tokenize it first")
    found: dict[str, npt.NDArray[Any]] = {}
    for name, kind in ({"input_ids": np.int32} | CARRIED).items():
        values = row.get(name)
        if values is None:
            continue
        try:
            # A null is no score, as NaN is; numpy makes one of the other where the type is float.
            found[name] = np.asarray(values, dtype=kind)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{name} of {place} is not a flat list of numbers: {error}: mend the row") from error
        if found[name].shape != (len(ids),):
            raise UserError(
                f"{name} of {place} has the shape {list(found[name].shape)} beside {len(ids)} input_ids: "
                "expected a flat list with an entry for each token"
            )
    if len(ids) and found["input_ids"].min() < 0:
        raise UserError(f"input_ids of {place} has {found['input_ids'].min()}: token ids are 0 or more")
    return found
