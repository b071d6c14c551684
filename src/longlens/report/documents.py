"""Documents for the page: texts with their token scores, in the page's own units."""

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
"""What the documents may take of a page by default, so that it stays below 10 MB."""
BYTES_PER_TOKEN = 4 * 4 * 4 / 3
"""Of the page, for one token of one run: start, end, long and short, four bytes each, in base64."""
BYTES_PER_WHERE = 10
"""About, for one token: where the words of those that the long context helps were mentioned before."""
FLOOR = LSD_FLOOR
"""Nats by which the long context helps a token, from which on a page says where its word was mentioned before."""
MAX_MENTIONS = 8


class PageDocuments:
    """The documents whose text a page shows, taken as they are read; more than `MAX_BYTES` of them wait in a file.

    Args:
        path: The page, beside which that file is.
        wanted: Ids of the documents, in this order; the first ones by default.
        num_documents: How many of the first ones; None for as many as fit.
        max_bytes: What they may take of the page, if nothing else says how many; one is always shown.
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
        """Gives the file up."""
        self._file.close()

    @property
    def ids(self) -> list[str]:
        """Ids of the documents that are shown, in the order of the page."""
        return self._wanted or list(self._places)

    def __iter__(self) -> Iterator[Markup]:
        """The documents as the page reads them, one after the other."""
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
        """Takes a document if it is one of those to show.

        Args:
            rows: Its scores in each run of the report; None if a run has no such document.
            shorts: The short context of each run.
            keys: Its key tokens, where they are not the evaluator's to select.
            judge: Place of the run whose tokens are traced back to earlier mentions.
            judged: The document in that run.

        Raises:
            UserError: There is no room for it.
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
        # Every run of the report has about as many tokens as the first one.
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
    """A document as the page reads it.

    ``{"id", "text", "runs": [{"start", "end", "long", "short"} or null, ...], "keys": [...] or null}``: a list with an
    entry a run of the report, null where it has no such document; arrays are base64 of little-endian int32 offsets in
    UTF-16 and of float32 nats. ``keys`` are runs of key tokens. ``where`` is what `_where` gives, or null.
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
    """Of the m tokens that are key or have LSD > `FLOOR`, and are in a word: earlier mentions of it, and every K.

    ``{"token": (m,), "first": (m + 1,), "mention": (first[m], 2), "contexts": [K, ...], "logprob": (m, number of K)}``:
    those of token j are ``mention[first[j] : first[j + 1]]``, the nearest first, `MAX_MENTIONS` at most.
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
    """Where each character of a text begins in UTF-16, which is what a page counts in: ``(len(text) + 1,)``.

    Equals ``[len(text[:i].encode("utf-16-le")) // 2 for i in range(len(text) + 1)]``.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return np.concatenate([[0], np.cumsum(1 + (points > 0xFFFF))]).astype(np.int64)


def base64_of(values: npt.ArrayLike, dtype: str) -> str:
    """The values as the page takes them: base64 of little-endian numbers."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def embedded(content: Any) -> Markup:
    r"""JSON for the inside of a ``<script type="application/json">``: ASCII, with ``<``, ``>`` and ``&`` as ``\u003c``…

    So neither ``</script>`` nor ``<!--`` can be in it, whatever the content is.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
