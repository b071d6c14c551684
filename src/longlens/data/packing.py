"""Documents of tokens to rows of one length; boundaries of documents are kept, and no token is in two rows.

A *document* here is a mapping of columns, arrays of one length: ``input_ids`` and what goes along with each token, see
`longlens.data.store.CARRIED`. A *piece* is a document, or the part of one that is longer than a row.

``trl.pack_dataset(strategy="bfd_split")`` packs as `BestFit` does and is not used: it is part of a trainer that is no
dependency here, it counts nothing (documents that are truncated, tokens that are dropped), it leaves ``position_ids``
to its own collator, and every batch of a thousand documents ends in rows that are not full. What it would save is 20
lines.
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
    """What became of the documents and tokens of a source; BOS and EOS count as tokens.

    ``tokens == row_tokens + short_tokens + long_tokens + cut_tokens + tail_tokens + left_tokens``

    Attributes:
        documents: That were read.
        tokens: Their tokens.
        short_documents: Left out, having fewer tokens than ``min_tokens``.
        short_tokens: Their tokens.
        long_documents: Left out, having more tokens than ``max_tokens``, or than a row with ``too_long="drop"``.
        long_tokens: Their tokens.
        cut_documents: Of which the first row's worth was kept (``too_long="cut"``).
        cut_tokens: What was removed.
        split_documents: That became several pieces, being longer than a row (``too_long="split"``).
        wrapped_pieces: That `Fill` divided at the end of a row.
        tail_tokens: Last pieces of split documents that are shorter than ``min_tokens``, left out.
        rows: That were made.
        row_tokens: Tokens in them.
        repeats: How often the source was begun again.
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
        """Tokens that were left after filters and cuts."""
        return self.tokens - self.short_tokens - self.long_tokens - self.cut_tokens - self.tail_tokens

    @property
    def left_tokens(self) -> int:
        """Tokens that are in no row: the remainder that was dropped, or what was read beyond the rows wanted."""
        return self.packable_tokens - self.row_tokens

    def to_json(self) -> dict[str, int]:
        """All of it."""
        return asdict(self) | {"left_tokens": self.left_tokens}


class Packing(Protocol):
    """How pieces become rows."""

    def rows(self, pieces: Iterable[Columns], length: int, counts: PackingCounts) -> Iterator[list[Columns]]:
        """Rows as lists of documents; pieces have 1 to ``length`` tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fill:
    """One piece after the other, and what does not fit into a row continues in the next as a document of its own.

    Every row is full but the last, so that a share of the rows is the same share of the tokens. So ProLong packs
    (github.com/CodeCreator/datatools, ``pack``).

    Attributes:
        keep_remainder: Whether the last row is kept where it is not full.
    """

    keep_remainder: bool = True

    def rows(self, pieces: Iterable[Columns], length: int, counts: PackingCounts) -> Iterator[list[Columns]]:
        """Rows as lists of documents; pieces have 1 to ``length`` tokens."""
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

    The longest piece first, each into the fullest row that has room for it. When the buffer is full its rows are given
    out in the order in which their first documents came, except for the emptiest, whose pieces stay in the buffer.

    Attributes:
        buffer_rows: The buffer, in rows' worth of tokens.
    """

    buffer_rows: int = BUFFER_ROWS

    def __post_init__(self) -> None:
        """Checks the buffer."""
        if self.buffer_rows < 1:
            raise UserError(f"`buffer_rows` is {self.buffer_rows}, expected at least 1")

    def rows(self, pieces: Iterable[Columns], length: int, counts: PackingCounts) -> Iterator[list[Columns]]:
        """Rows as lists of documents; pieces have 1 to ``length`` tokens."""
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
    """The packing of a name, for commands and recipes alike.

    Args:
        name: Name, one of `PACKINGS`.
        keep_remainder: Whether ``fill`` keeps a last row that is not full. Mixtures do not, since rows of one length
            are what makes shares of rows shares of tokens.

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
    rooms: list[tuple[int, int]] = []  # sorted: room and row, of rows that have some
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
    """Packs documents into rows; the order of documents decides all of it, nothing is drawn.

    Args:
        documents: Mappings of columns: ``input_ids`` and any of `store.CARRIED`, the same for all.
        length: Tokens of a row.
        packing: `Fill` or `BestFit`.
        too_long: What becomes of a document of more than ``piece_length`` tokens: split into pieces of that length,
            each a document of its own; truncated to its first piece; or dropped.
        piece_length: The longest piece; a row unless given.
        min_tokens: Documents of fewer tokens are left out, and last pieces of split ones too.
        max_tokens: Documents of more tokens are left out.
        counts: Is added to as rows are made.

    Returns:
        Rows: mappings with the columns of the documents, and

        - ``position_ids``: 0, 1, ... again for each document, from which trainers know where documents begin.
        - ``labels``: ``input_ids`` (or the documents' own), -100 at the first token of each document, which nothing
          before it can predict. `longlens.losses.longce_loss` knows that from the positions; other trainers do not.

    Raises:
        UserError: A length that cannot be, or documents whose columns differ.
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
                f"{', '.join(sorted(names))}: give all documents the same"
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
    """Warns where documents with offline weights were divided: the weights know more context than the row has.

    Args:
        counts: After packing.
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
    """Packed rows, and what became of the documents."""

    dataset: Dataset
    counts: PackingCounts


def pack_dataset(
    dataset: Dataset, length: int, *, packing: Packing | None = None, too_long: TooLong = "split"
) -> Packed:
    """Packs a `datasets.Dataset` of tokenized documents: ``input_ids`` and any of `store.CARRIED`.

    Args:
        dataset: A document per row; no BOS or EOS is added, other columns are dropped.
        length: Tokens of a row.
        packing: `Fill` or `BestFit`, ``BestFit()`` unless given.
        too_long: What becomes of documents longer than a row: ``split``, ``cut`` or ``drop``.

    Raises:
        UserError: See `pack`; or there is no document.
    """
    counts = PackingCounts()
    documents = (read_columns(row, f"row {at}") for at, row in enumerate(dataset.with_format("numpy")))
    rows = pack(documents, length, packing=packing or BestFit(), too_long=too_long, counts=counts)
    packed = to_dataset(rows, token_types(dataset.column_names))
    warn_divided(counts, dataset.column_names, "the dataset")
    return Packed(packed, counts)
