"""Reading token scores: lazily, a row group at a time."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from longlens.errors import UserError
from longlens.scoring.layout import LONG_SCHEMA, SHORT_SCHEMA, Place, open_part, read_ids, read_manifest
from longlens.scoring.scores import ShortContext, TokenScores, choose_short_context

CACHED_ROW_GROUPS = 2


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
        """Where each id of one side is."""
        where: dict[str, Place] = {}
        hashes: dict[str, str] = {}
        for place, record in read_ids(self.folder, short):
            id = record["id"]
            if short is None and hashes.setdefault(id, record["text_sha256"]) != record["text_sha256"]:
                raise UserError(f"{self.folder} holds two texts with the id {id!r}: score them into two folders")
            # The newest row: an older short row may be of a text whose long row was never committed.
            where[id] = place
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
            selected=self.selected,
        )

    def _row(self, path: Path, group: int, row: int) -> dict[str, pa.Scalar]:
        table = self._cache.get((path, group))
        if table is None:
            schema = LONG_SCHEMA if path.parent.name == "long" else SHORT_SCHEMA
            with open_part(path, schema) as parquet:
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
