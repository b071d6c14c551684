"""Reading token scores: lazily, one row group at a time."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longlens.corpus import text_sha256
from longlens.corpus.document import Spans
from longlens.errors import UserError, shown
from longlens.scoring.scores import (
    Floats,
    Scores,
    ShortContext,
    TokenScores,
    choose_short_context,
    identity_of,
    wrong_logprobs,
)
from longlens.scoring.store import (
    LONG_SCHEMA,
    SHORT_SCHEMA,
    Place,
    broken,
    open_part,
    read_ids,
    read_manifest,
    run_sha256,
)

CACHED_ROW_GROUPS = 2
MAX_CHARACTERS = 1024
"""Upper bound on the characters of n tokens of a text that was not stored: this number for each, plus the same once
more."""


class StoredScores(Scores):
    """The scores of a run directory, read lazily, one row group at a time.

    Documents are in the order of the long parts; only those that also have the selected short context are included
    (`num_incomplete` others are missing until an interrupted run is resumed).
    """

    folder: Path

    def __init__(self, folder: Path, *, context: int | None = None, stride: int | None = None) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._run = run_sha256(self.manifest)
        # As published, windows are planned over the tokenizer's own prefix and the text, see `longlens.scoring.run`.
        is_published = self.manifest["settings"].get("bos") == "published"
        identity = identity_of(self)
        self._num_counted = len(identity.own_prefix) if is_published else 0
        self._bos_token_id = None if is_published else identity.bos_token_id
        found = [re.fullmatch(r"K(\d+)-d(\d+)", entry.name) for entry in folder.glob("short/*")]
        self.short_contexts = sorted(ShortContext(int(m[1]), int(m[2])) for m in found if m)
        wanted = context is not None or stride is not None
        self.selected = (
            choose_short_context(self.short_contexts, context, stride) if self.short_contexts or wanted else None
        )
        sides = {short: self._index(short) for short in [None, *self.short_contexts]}
        self._where = {
            id: {short: side[id] for short, side in sides.items() if id in side}
            for id in sides[None]
            if self.selected is None or id in sides[self.selected]
        }
        self.ids = list(self._where)
        self.num_incomplete = len(sides[None]) - len(self.ids)
        self._cache: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()

    def _index(self, short: ShortContext | None) -> dict[str, Place]:
        """Location of each ID of one side."""
        where: dict[str, Place] = {}
        hashes: dict[str, str] = {}
        for place, record in read_ids(self.folder, short, self._run):
            id = record["id"]
            if short is None and hashes.setdefault(id, record["text_sha256"]) != record["text_sha256"]:
                raise UserError(f"{self.folder} holds two texts with the id {id!r}: score them into two folders")
            # The newest row: an older short row may belong to a text whose long row was never committed.
            where[id] = place
        return where

    def get(self, id: str) -> TokenScores:
        """The scores of the document with this id.

        Raises:
            KeyError: There is no such document.
            UserError: A part is broken.
        """
        where = self._where[id]
        place = where[None]
        with _checked(id, place):
            row = self._long(id, self._row(*place))
        # If the text itself begins with BOS, windows cover what comes after it.
        begins = len(row.token_ids) > 0 and row.token_ids[0] == self._bos_token_id and np.isnan(row.long_logprobs[0])
        before = int(begins) - self._num_counted
        short: dict[ShortContext, Floats] = {}
        for side, place in where.items():
            if side is not None:
                with _checked(id, place):
                    short[side] = self._short(side, self._row(*place), len(row.token_ids), before)
        return replace(row, short=short)

    def _long(self, id: str, long: Mapping[str, pa.Scalar]) -> TokenScores:
        text, total = long["text"].as_py(), long["total_tokens"].as_py()
        token_ids = _array(long, "token_ids", np.int64)
        n = len(token_ids)
        spans = np.stack([_array(long, name, np.int64, n) for name in ("char_start", "char_end")], axis=1)
        logprobs = _array(long, "logprobs", np.float32, n)
        _require(not (token_ids < 0).any(), "a token id is below 0")
        _require(total is None or total >= n, f"total_tokens is {total}, and there are {n}")
        length = MAX_CHARACTERS * (n + MAX_CHARACTERS) if text is None else len(text)
        inside = (spans[:, 0] >= 0) & (spans[:, 0] <= spans[:, 1]) & (spans[:, 1] <= length)
        _require(inside.all(), f"a span is reversed or ends after {length} characters")
        _require(text is None or text_sha256(text) == long["text_sha256"].as_py(), "the text has another hash")
        # Nothing may precede the first token; every other token has a score.
        first = 1 if n and np.isnan(logprobs[0]) else 0
        _check_logprobs(logprobs[first:])
        return TokenScores(
            id=id,
            text=text,
            text_sha256=long["text_sha256"].as_py(),
            total_tokens=total,
            token_ids=token_ids,
            char_spans=spans,
            long_logprobs=logprobs,
            short={},
            selected=self.selected,
            answer_spans=_answer_spans(long, length),
            columns=_columns(long, n),
            metadata=_metadata(long),
        )

    def _short(self, short: ShortContext, row: Mapping[str, pa.Scalar], n: int, before: int) -> Floats:
        logprobs = _array(row, "logprobs", np.float32, n)
        first = min(n, max(0, short.context + before))
        _require(np.isnan(logprobs[:first]).all(), f"there are scores before token {first}, the first after K")
        _check_logprobs(logprobs[first:])
        return logprobs

    def _row(self, path: Path, group: int, row: int) -> dict[str, pa.Scalar]:
        table = self._cache.get((path, group))
        if table is None:
            schema = LONG_SCHEMA if path.parent.name == "long" else SHORT_SCHEMA
            with open_part(path, schema, self._run) as parquet:
                table = parquet.read_row_group(group)
                table.validate(full=True)
            self._cache[path, group] = table
            while len(self._cache) > CACHED_ROW_GROUPS * (1 + len(self.short_contexts)):
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end((path, group))
        return {name: table[name][row] for name in table.column_names}


class _Damaged(ValueError):
    """A row whose values are inconsistent."""


@contextmanager
def _checked(id: str, place: Place) -> Iterator[None]:
    try:
        yield
    except _Damaged as error:
        raise broken(place.path, f"document {shown(id)}: {error}") from error


def _require(holds: Any, otherwise: str) -> None:
    if not holds:
        raise _Damaged(otherwise)


def _array(row: Mapping[str, pa.Scalar], name: str, dtype: Any, length: int | None = None) -> np.ndarray[Any, Any]:
    values = row[name].values
    _require(values is not None and not values.null_count, f"{name} is null, or something in it is")
    _require(length in (None, len(values)), f"{name} has {len(values)} entries for {length} tokens")
    array: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return array


def _answer_spans(row: Mapping[str, pa.Scalar], length: int) -> Spans | None:
    ends = row["answer_spans"].as_py() if "answer_spans" in row else None  # older parts have no such column
    if ends is None:
        return None
    spans = list(zip(ends[::2], ends[1::2], strict=False))
    fits = len(ends) % 2 == 0 and None not in ends and all(0 <= start <= end <= length for start, end in spans)
    _require(fits, "answer_spans are not pairs of character offsets in the text")
    return spans


def _metadata(row: Mapping[str, pa.Scalar]) -> dict[str, Any]:
    content = row["metadata"].as_py() if "metadata" in row else None  # older parts have no such column
    try:
        found = json.loads(content or "{}")
    except ValueError:
        found = None
    _require(isinstance(found, dict), "metadata is not a JSON object")
    return dict(found)


def _columns(row: Mapping[str, pa.Scalar], n: int) -> dict[str, Floats]:
    if "columns" not in row or not row["columns"].is_valid:
        return {}
    found = dict(row["columns"].as_py(maps_as_pydicts="strict"))
    _require(all(values is not None and len(values) == n for values in found.values()), "a column has another length")
    return {name: np.asarray(values, dtype=np.float32) for name, values in found.items()}


def _check_logprobs(logprobs: Floats) -> None:
    wrong = wrong_logprobs(logprobs)
    _require(wrong is None, f"a log-probability is {wrong}")


def open_scores(path: str | os.PathLike[str], *, context: int | None = None, stride: int | None = None) -> StoredScores:
    """Opens a run directory; only the document IDs are read at first.

    Args:
        path: Run directory of ``longlens score`` or ``longlens.score(out=...)``.
        context: K of `short_logprobs` and `lsd`; by default the largest that was scored.
        stride: d to use, if this K was scored with several.

    Raises:
        UserError: There is no run, the schema version is unknown, a part is corrupt, or the short context was not
            scored.
    """
    return StoredScores(Path(path), context=context, stride=stride)
