"""Packs tokenized documents into rows of one length; document boundaries are kept, and no token is in two rows.

A *document* here is a mapping of columns, arrays of one length: ``input_ids`` and further columns per token, see
`longlens.data.store.CARRIED`. A *piece* is a document, or the part of one that is longer than a row.

``trl.pack_dataset(strategy="bfd_split")`` packs as `BestFit` does and is not used: it is part of a trainer that is not
a dependency here, it counts nothing (truncated documents, dropped tokens), it leaves ``position_ids`` to its own
collator, and every batch of a thousand documents ends in rows that are not full. It would save only 20 lines.
"""

from __future__ import annotations

import sys
import warnings
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from longlens.data.store import IGNORED, NEUTRAL, Columns, Row, part_of, read_columns, size_of, to_dataset, token_types
from longlens.errors import LonglensWarning, UserError, shown_value

if TYPE_CHECKING:
    from datasets import Dataset

TooLong = Literal["split", "cut", "drop"]

BUFFER_ROWS = 64


@dataclass(slots=True)
class PackingCounts:
    """Counts of the documents and tokens of a source; BOS and EOS count as tokens.

    ``tokens == row_tokens + short_tokens + long_tokens + cut_tokens + tail_tokens + left_tokens``

    Attributes:
        documents: Number of documents that were read.
        tokens: Number of their tokens.
        short_documents: Number of documents dropped because they have fewer tokens than ``min_tokens``.
        short_tokens: Number of their tokens.
        long_documents: Number of documents dropped because they have more tokens than ``max_tokens``, or than a row
            with ``too_long="drop"``.
        long_tokens: Number of their tokens.
        cut_documents: Number of documents truncated to one row (``too_long="cut"``).
        cut_tokens: Number of tokens removed from them.
        split_documents: Number of documents split into several pieces because they are longer than a row
            (``too_long="split"``).
        wrapped_pieces: Number of pieces that `Fill` divided at the end of a row.
        tail_tokens: Number of tokens of dropped last pieces of split documents, shorter than ``min_tokens``.
        rows: Number of rows that were made.
        row_tokens: Number of tokens in the rows.
        repeats: Number of times the source was repeated.
    """

    documents: int = 0
    tokens: int = 0
    short_documents: int = 0
    short_tokens: int = 0
    long_documents: int = 0
    long_tokens: int = 0
    cut_documents: int = 0
    cut_tokens: int = 0
    split_documents: int = 0
    wrapped_pieces: int = 0
    tail_tokens: int = 0
    rows: int = 0
    row_tokens: int = 0
    repeats: int = 0

    @property
    def packable_tokens(self) -> int:
        """Number of tokens left after filtering and truncation."""
        return self.tokens - self.short_tokens - self.long_tokens - self.cut_tokens - self.tail_tokens

    @property
    def left_tokens(self) -> int:
        """Number of tokens in no row: a dropped remainder, or tokens read beyond the requested rows."""
        return self.packable_tokens - self.row_tokens

    def to_json(self) -> dict[str, int]:
        """Returns all counts."""
        return asdict(self) | {"left_tokens": self.left_tokens}


class Packing(Protocol):
    """Interface of a packing strategy."""

    def rows(self, pieces: Iterable[Columns], length: int, counts: PackingCounts) -> Iterator[list[Columns]]:
        """Yields rows as lists of documents; pieces have 1 to ``length`` tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fill:
    """One piece after the other; what does not fit into a row continues in the next row as a separate document.

    Every row except the last is full, so that a share of the rows is the same share of the tokens. ProLong packs in
    this way (github.com/CodeCreator/datatools, ``pack``).

    Attributes:
        keep_remainder: Whether the last row is kept if it is not full.
    """

    keep_remainder: bool = True

    def rows(self, pieces: Iterable[Columns], length: int, counts: PackingCounts) -> Iterator[list[Columns]]:
        """Yields rows as lists of documents; pieces have 1 to ``length`` tokens."""
        row: list[Columns] = []
        room = length
        for piece in pieces:
            size, start = size_of(piece), 0
            counts.wrapped_pieces += size > room
            while start < size:
                stop = min(size, start + room)
                row.append(part_of(piece, start, stop))
                room -= stop - start
                start = stop
                if not room:
                    yield row
                    row, room = [], length
        if row and self.keep_remainder:
            yield row


@dataclass(frozen=True, kw_only=True, slots=True)
class BestFit:
    """Best-fit decreasing in a bounded buffer: pieces stay whole, and rows can be shorter than their length.

    Longest piece first, each into the fullest row with room for it. When the buffer is full, its rows are output in the
    order of their first documents, except for the emptiest row, whose pieces stay in the buffer.

    Attributes:
        buffer_rows: Size of the buffer, in rows.
    """

    buffer_rows: int = BUFFER_ROWS

    def __post_init__(self) -> None:
        """Checks the buffer."""
        if self.buffer_rows < 1:
            raise UserError(f"`buffer_rows` is {self.buffer_rows}, expected at least 1")

    def rows(self, pieces: Iterable[Columns], length: int, counts: PackingCounts) -> Iterator[list[Columns]]:
        """Yields rows as lists of documents; pieces have 1 to ``length`` tokens."""
        waiting: list[Columns] = []
        tokens = 0
        for piece in pieces:
            waiting.append(piece)
            tokens += size_of(piece)
            if tokens >= self.buffer_rows * length:
                rows = _best_fit(waiting, length)
                emptiest = min(range(len(rows)), key=lambda at: sum(map(size_of, rows[at])))
                waiting = rows.pop(emptiest)
                tokens = sum(map(size_of, waiting))
                yield from rows
        yield from _best_fit(waiting, length)


PACKINGS = ("fill", "best-fit")


def packing_of(name: str, *, keep_remainder: bool = True) -> Packing:
    """Returns a packing by name, for commands and recipes.

    Args:
        name: Name, one of `PACKINGS`.
        keep_remainder: Whether ``fill`` keeps a last row that is not full. Mixtures do not, since shares of rows are
            shares of tokens only if all rows have the same length.

    Raises:
        UserError: There is no such packing, or it has no remainder to drop.
    """
    if name == "fill":
        return Fill(keep_remainder=keep_remainder)
    if name != "best-fit":
        raise UserError(f"`packing` is {shown_value(name)}; expected {' or '.join(PACKINGS)}")
    if not keep_remainder:
        raise UserError("`packing=best-fit` has no remainder to drop, as fill has: leave `keep_remainder=False` out")
    return BestFit()


def _best_fit(pieces: Sequence[Columns], length: int) -> list[list[Columns]]:
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # sorted (room, row) of rows that have room
    for at in sorted(range(len(pieces)), key=lambda at: -size_of(pieces[at])):
        size = size_of(pieces[at])
        fits = bisect_left(rooms, (size, -1))
        room, row = rooms.pop(fits) if fits < len(rooms) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(at)
        if room > size:
            insort(rooms, (room - size, row))
    return [[pieces[at] for at in row] for row in sorted(sorted(row) for row in rows)]


def pack(
    documents: Iterable[Columns],
    length: int,
    *,
    packing: Packing,
    too_long: TooLong = "split",
    piece_length: int | None = None,
    min_tokens: int = 1,
    max_tokens: int | None = None,
    counts: PackingCounts | None = None,
) -> Iterator[Row]:
    """Packs documents into rows; deterministic in the order of documents.

    Args:
        documents: Mappings of columns: ``input_ids`` and any of `store.CARRIED`, the same for all.
        length: Tokens per row.
        packing: `Fill` or `BestFit`.
        too_long: Handling of documents with more than ``piece_length`` tokens: split into pieces of that length, each a
            separate document; truncated to the first piece; or dropped.
        piece_length: Maximum tokens per piece; by default the length of a row.
        min_tokens: Documents with fewer tokens are dropped, as are last pieces of split documents.
        max_tokens: Documents with more tokens are dropped.
        counts: Updated as rows are made.

    Returns:
        Rows: mappings with the columns of the documents, and

        - ``position_ids``: restart at 0 with each document, from which trainers infer document boundaries.
        - ``labels``: ``input_ids`` (or the documents' own), -100 at the first token of each document, which nothing
          before it can predict. `longlens.losses.longce_loss` knows that from the positions; other trainers do not.

    Raises:
        UserError: A length is invalid, or columns of documents differ.
    """
    counts = PackingCounts() if counts is None else counts
    limit = length if piece_length is None else piece_length
    if length < 2:
        raise UserError(f"`length` is {length}; a row needs at least 2 tokens, such as 65536")
    if not 2 <= limit <= length:
        raise UserError(f"`piece_length` is {limit}; expected 2 to {length} tokens, the length of a row")
    if too_long not in ("split", "cut", "drop"):
        raise UserError(f"`too_long` is {too_long!r}; expected split, cut or drop")
    longest = min(limit if too_long == "drop" else sys.maxsize, sys.maxsize if max_tokens is None else max_tokens)
    kept = _filter(documents, min_tokens, longest, counts)
    pieces = _split(kept, limit, too_long, min_tokens, counts)
    return _count_rows((_packed_row(parts) for parts in packing.rows(pieces, length, counts)), counts)


def _filter(documents: Iterable[Columns], fewest: int, most: int, counts: PackingCounts) -> Iterator[Columns]:
    names: set[str] | None = None
    for document in documents:
        names = set(document) if names is None else names
        if set(document) != names:
            raise UserError(
                f"document {counts.documents + 1} has the columns {', '.join(sorted(document))}, those before it have "
                f"{', '.join(sorted(names))}: use the same columns for all documents"
            )
        size = size_of(document)
        counts.documents += 1
        counts.tokens += size
        if size < fewest:
            counts.short_documents += 1
            counts.short_tokens += size
        elif size > most:
            counts.long_documents += 1
            counts.long_tokens += size
        elif size:
            yield document


def _split(
    documents: Iterable[Columns], limit: int, too_long: TooLong, fewest: int, counts: PackingCounts
) -> Iterator[Columns]:
    for document in documents:
        size = size_of(document)
        if size <= limit:
            yield document
        elif too_long == "cut":
            counts.cut_documents += 1
            counts.cut_tokens += size - limit
            yield part_of(document, 0, limit)
        else:
            counts.split_documents += 1
            for start in range(0, size, limit):
                piece = part_of(document, start, min(size, start + limit))
                if start and size_of(piece) < fewest:
                    counts.tail_tokens += size_of(piece)
                else:
                    yield piece


def _packed_row(documents: Sequence[Columns]) -> Row:
    """A row of these documents, with ``position_ids`` and ``labels``, see `pack`.

    Args:
        documents: At least one, none empty, of the same columns.
    """
    row: Row = {name: np.concatenate([document[name] for document in documents]) for name in documents[0]}
    sizes = [size_of(document) for document in documents]
    row["position_ids"] = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    labels = row.get("labels", row["input_ids"]).copy()
    labels[np.cumsum([0, *sizes[:-1]])] = IGNORED
    row["labels"] = labels
    return row


def warn_divided(counts: PackingCounts, columns: Iterable[str], what: str) -> None:
    """Warns if documents with offline weights were divided: the weights include more context than the row has.

    Args:
        counts: Counts after packing.
        columns: Columns of the rows.
        what: What was packed, for the message.
    """
    offline = sorted(set(columns) & set(NEUTRAL))
    divided = counts.split_documents + counts.wrapped_pieces
    if offline and divided:
        warnings.warn(
            f"{what}: {divided:,} documents with {', '.join(offline)} were split, and tokens of later pieces were "
            "scored with the text before the piece as context: score documents that fit into a row, and pack with "
            "best-fit",
            LonglensWarning,
            stacklevel=2,
        )


def _count_rows(rows: Iterable[Row], counts: PackingCounts) -> Iterator[Row]:
    for row in rows:
        counts.rows += 1
        counts.row_tokens += size_of(row)
        yield row


class Packed(NamedTuple):
    """Packed rows, and counts of documents and tokens."""

    dataset: Dataset
    counts: PackingCounts


def pack_dataset(
    dataset: Dataset, length: int, *, packing: Packing | None = None, too_long: TooLong = "split"
) -> Packed:
    """Packs a `datasets.Dataset` of tokenized documents: ``input_ids`` and any of `store.CARRIED`.

    Args:
        dataset: One document per row; no BOS or EOS is added, other columns are dropped.
        length: Tokens per row.
        packing: `Fill` or `BestFit`, ``BestFit()`` by default.
        too_long: Handling of documents longer than a row: ``split``, ``cut`` or ``drop``.

    Raises:
        UserError: See `pack`; or there is no document.
    """
    counts = PackingCounts()
    documents = (read_columns(row, f"row {at}") for at, row in enumerate(dataset.with_format("numpy")))
    rows = pack(documents, length, packing=packing or BestFit(), too_long=too_long, counts=counts)
    packed = to_dataset(rows, token_types(dataset.column_names))
    warn_divided(counts, dataset.column_names, "the dataset")
    return Packed(packed, counts)
