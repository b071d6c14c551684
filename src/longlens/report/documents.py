"""Prepares documents for the page: texts with their token scores, with offsets in UTF-16 code units."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from longlens.files import cannot_write
from longlens.keytokens.selection import KeyTokens
from longlens.metrics.corpus import ScoredDocument
from longlens.metrics.score_distributions import LSD_FLOOR
from longlens.report.evidence import key_mask, rising
from longlens.report.words import mentions, words_of, words_of_tokens
from longlens.scoring.scores import ShortContext, TokenScores

MAX_BYTES = 7_000_000
"""Maximum size of the documents in a page by default, so that the page stays below 10 MB."""
BYTES_PER_TOKEN = 4 * 4 * 4 / 3
"""Size in the page of one token of one run: start, end, long and short, four bytes each, in base64."""
BYTES_PER_WHERE = 10
"""Approximate size per token of the earlier mentions of words."""
FLOOR = LSD_FLOOR
"""Minimum LSD in nats of tokens for which a page shows earlier mentions of their words."""
MAX_MENTIONS = 8


class PageDocuments:
    """The documents whose text a page shows, collected as they are read; beyond `MAX_BYTES` they are kept in a file.

    Args:
        path: The page; the temporary file is in the same directory.
        wanted: Ids of the documents, in this order; the first documents by default.
        num_documents: Number of first documents to show; None for as many as fit.
        max_bytes: Maximum size of the documents if neither is set; at least one document is shown.
    """

    def __init__(
        self, path: Path, wanted: Sequence[str] = (), num_documents: int | None = None, max_bytes: int = MAX_BYTES
    ) -> None:
        self._path, self._wanted = path, list(dict.fromkeys(wanted))
        self._num_documents, self._max_bytes = num_documents, max_bytes
        self._size, self._is_full = 0.0, False
        self._places: dict[str, tuple[int, int]] = {}
        self._file: IO[bytes] = SpooledTemporaryFile(MAX_BYTES, dir=str(path.parent))  # noqa: SIM115  see close

    def close(self) -> None:
        """Closes the temporary file."""
        self._file.close()

    @property
    def ids(self) -> list[str]:
        """Ids of the shown documents, in the order of the page."""
        return self._wanted or list(self._places)

    def __iter__(self) -> Iterator[Markup]:
        """Yields the documents in the format of the page, one at a time."""
        for id in self.ids:
            start, length = self._places[id]
            self._file.seek(start)
            yield Markup(self._file.read(length).decode("ascii"))

    def add(
        self,
        rows: Sequence[TokenScores | None],
        shorts: Sequence[ShortContext | None],
        keys: KeyTokens | None,
        judge: int = 0,
        judged: ScoredDocument | None = None,
    ) -> None:
        """Adds a document if it is one of those to show.

        Args:
            rows: Its scores in each run of the report; None if a run does not have the document.
            shorts: The short context of each run.
            keys: Its key tokens, if the evaluator does not select them.
            judge: Index of the run whose tokens are traced back to earlier mentions.
            judged: The document in that run.

        Raises:
            UserError: There is not enough disk space.
        """
        if rows[0] is None or not self._shows(rows[0], len(rows)):
            return
        content = embedded(page_document(rows, shorts, keys, judge, judged)).encode("ascii")
        try:
            start = self._file.seek(0, 2)
            self._file.write(content)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._places[rows[0].id] = start, len(content)

    def _shows(self, row: TokenScores, num_runs: int) -> bool:
        if self._wanted:
            return row.id in self._wanted
        if self._num_documents is not None:
            return len(self._places) < self._num_documents
        # Assumes that the other runs of the report have about as many tokens as the first run.
        text = json.dumps(row.text or "")
        self._size += len(row.token_ids) * BYTES_PER_TOKEN * num_runs
        self._size += len(row.token_ids) * BYTES_PER_WHERE
        self._size += len(text) + 5 * sum(text.count(character) for character in "<>&")
        self._is_full |= bool(self._places) and self._size > self._max_bytes
        return not self._is_full


def page_document(
    rows: Sequence[TokenScores | None],
    shorts: Sequence[ShortContext | None],
    keys: KeyTokens | None,
    judge: int = 0,
    judged: ScoredDocument | None = None,
) -> dict[str, Any]:
    """Returns a document in the format of the page.

    ``{"id", "text", "runs": [{"start", "end", "long", "short"} or null, ...], "keys": [...] or null}``: ``runs`` has
    one entry per run of the report, null if the run lacks the document. Arrays are base64 of little-endian int32
    offsets in UTF-16 and of float32 nats. ``keys`` are spans of adjacent key tokens. ``where`` is the result of
    `_where`, or null.
    """
    scored = [row for row in rows if row is not None]
    text = next((row.text for row in scored if row.text is not None), None)
    offsets = None if text is None else utf16_offsets(text)
    return {
        "id": scored[0].id,
        "text": text,
        "runs": [
            None if row is None or offsets is None else _tokens(row, short, offsets)
            for row, short in zip(rows, shorts, strict=True)
        ],
        "keys": None if offsets is None or keys is None else base64_of(offsets[keys.char_runs], "<i4"),
        "where": None
        if offsets is None or judged is None or judged.row.text is None
        else {"run": judge, **_where(judged, judged.row.text, shorts[judge], offsets)},
    }


def _where(
    judged: ScoredDocument, text: str, short: ShortContext | None, offsets: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Returns earlier mentions and scores at every K of the m tokens in a word that are key or have LSD > `FLOOR`.

    ``{"token": (m,), "first": (m + 1,), "mention": (first[m], 2), "contexts": [K, ...], "logprob": (m, number of K)}``:
    the mentions of token j are ``mention[first[j] : first[j + 1]]``, nearest first, at most `MAX_MENTIONS`.
    """
    row = judged.row
    words = words_of(text)
    of_token = words_of_tokens(row.char_spans, words)
    traced = np.zeros(len(of_token), dtype=np.bool_) if judged.keys is None else key_mask(judged)
    if short is not None and short in row.short:
        traced = traced | (row.long_logprobs - row.short[short] > FLOOR)
    tokens = np.flatnonzero(traced & (of_token >= 0))
    found = [mentions(words, word, MAX_MENTIONS) for word in of_token[tokens].tolist()]
    shorts = rising(row)
    logprobs = np.stack([row.short[each][tokens] for each in shorts], axis=1) if shorts else np.zeros((len(tokens), 0))
    return {
        "token": base64_of(tokens, "<i4"),
        "first": base64_of(np.cumsum([0, *map(len, found)]), "<i4"),
        "mention": base64_of(offsets[words.spans[np.array(list(chain.from_iterable(found)), dtype=np.int64)]], "<i4"),
        "contexts": [each.context for each in shorts],
        "logprob": base64_of(logprobs, "<f4"),
    }


def _tokens(row: TokenScores, short: ShortContext | None, offsets: npt.NDArray[np.int64]) -> dict[str, Any]:
    spans = offsets[row.char_spans]
    return {
        "start": base64_of(spans[:, 0], "<i4"),
        "end": base64_of(spans[:, 1], "<i4"),
        "long": base64_of(row.long_logprobs, "<f4"),
        "short": None if short is None else base64_of(row.short[short], "<f4"),
    }


def utf16_offsets(text: str) -> npt.NDArray[np.int64]:
    """Returns the offset of each character in UTF-16 code units, in which a page counts: ``(len(text) + 1,)``.

    Equals ``[len(text[:i].encode("utf-16-le")) // 2 for i in range(len(text) + 1)]``.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return np.concatenate([[0], np.cumsum(1 + (points > 0xFFFF))]).astype(np.int64)


def base64_of(values: npt.ArrayLike, dtype: str) -> str:
    """Encodes values for the page: base64 of little-endian numbers."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def embedded(content: Any) -> Markup:
    r"""Returns JSON for ``<script type="application/json">``: ASCII, with ``<``, ``>`` and ``&`` as ``\u003c``…

    Therefore it never contains ``</script>`` or ``<!--``, whatever the content is.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
