"""Documents for the page: texts with their token scores, in the page's own units."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.keytokens.selection import KeySource
from longlens.report.summary import Summary
from longlens.scoring.scores import ShortContext, TokenScores

BYTES_PER_TOKEN = 4 * 4 * 4 / 3
"""Of the page, for one token of one run: start, end, long and short, four bytes each, in base64."""


def utf16_offsets(text: str) -> npt.NDArray[np.int64]:
    """Where each character of a text begins in UTF-16, which is what a page counts in: ``(len(text) + 1,)``.

    Equals ``[len(text[:i].encode("utf-16-le")) // 2 for i in range(len(text) + 1)]``.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return np.concatenate([[0], np.cumsum(1 + (points > 0xFFFF))]).astype(np.int64)


def choose_documents(summary: Summary, wanted: Sequence[str], num_documents: int | None, max_bytes: int) -> list[str]:
    """Ids of the documents whose text is shown: the named ones, or the first ones.

    Args:
        summary: The report.
        wanted: Ids that were asked for.
        num_documents: How many of the first ones; None for as many as fit.
        max_bytes: What they may take of the page, if nothing else says how many; one is always shown.

    Raises:
        KeyError: An id that was not scored.
    """
    scores = summary.runs[0].scores
    if wanted:
        for id in wanted:
            scores.get(id)
        return list(dict.fromkeys(wanted))
    if num_documents is not None:
        return list(scores.ids[:num_documents])
    chosen: list[str] = []
    size = 0.0
    for row in scores:
        # Every run of the report has about as many tokens as the first one.
        size += len(row.token_ids) * BYTES_PER_TOKEN * len(summary.runs) + _embedded_size(row.text or "")
        if chosen and size > max_bytes:
            break
        chosen.append(row.id)
    return chosen


def _embedded_size(text: str) -> int:
    return len(json.dumps(text)) + 5 * sum(text.count(character) for character in "<>&")


def page_documents(summary: Summary, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The documents as the page reads them, one after the other.

    ``{"id", "text", "runs": [{"start", "end", "long", "short"} or null, ...], "keys": [...] or null}``: a list with an
    entry a run of the report, null where it has no such document; arrays are base64 of little-endian int32 offsets in
    UTF-16 and of float32 nats. ``keys`` are runs of key tokens, only where they are not the evaluator's to select.
    """
    for id in ids:
        rows = [(run, run.scores.get(id) if id in run.scores.ids else None) for run in summary.runs]
        text = next((row.text for _, row in rows if row is not None and row.text is not None), None)
        offsets = None if text is None else utf16_offsets(text)
        yield {
            "id": id,
            "text": text,
            "runs": [None if row is None or offsets is None else _tokens(row, run.short, offsets) for run, row in rows],
            "keys": None if offsets is None or summary.evaluator is not None else _key_runs(summary.keys, id, offsets),
        }


def _tokens(row: TokenScores, short: ShortContext | None, offsets: npt.NDArray[np.int64]) -> dict[str, Any]:
    spans = offsets[row.char_spans]
    return {
        "start": base64_of(spans[:, 0], "<i4"),
        "end": base64_of(spans[:, 1], "<i4"),
        "long": base64_of(row.long_logprobs, "<f4"),
        "short": None if short is None else base64_of(row.short[short], "<f4"),
    }


def _key_runs(keys: KeySource | None, id: str, offsets: npt.NDArray[np.int64]) -> str | None:
    return None if keys is None else base64_of(offsets[keys.get(id).char_runs], "<i4")


def base64_of(values: npt.ArrayLike, dtype: str) -> str:
    """The values as the page takes them: base64 of little-endian numbers."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
