"""Collects evidence for a report: single key tokens, earlier mentions of their words, and which text gains."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from longlens.errors import UserError, shown
from longlens.keytokens.selection import KeyTokens
from longlens.metrics.corpus import Bools, Ints, ScoredDocument
from longlens.metrics.listed import Most, excerpt
from longlens.metrics.ngram import reoccurred_ngram_mask
from longlens.metrics.uncertainty import MIN_TOKENS, Doubles, Interval, estimate
from longlens.report.words import KINDS, tokens_since, words_of, words_of_tokens
from longlens.scoring.scores import ShortContext, TokenScores

MAX_TOKENS = 1000
"""Maximum number of key tokens in the list of a report, those with the largest LSD."""
MAX_POINTS = 2000
"""Maximum number of key tokens in a scatter plot, sampled from all key tokens by a hash of their positions."""
DISTANCES = (64, 256, 1024, 4096, 16384)
"""Upper edges of the distance classes, in tokens."""
MAX_VALUES = 12
"""Maximum number of field values that a report shows separately."""
NO_VALUE, OTHERS = "(no value)", "(other values)"
GROUPS = (*KINDS, "re-occurring 3-grams", "new text")


@dataclass(frozen=True, kw_only=True)
class KeyToken:
    """A key token of the evaluator, or of the first run if the key tokens come from a file.

    Attributes:
        document: Id of its document.
        index: Index of the token in the document.
        start: Offset of its first character.
        before: The text before it.
        text: Its own text.
        after: The text after it.
        lsd: LSD in nats; None if that run has no short-context scores.
        long: Log-probability of its characters under each run of the report; None if token boundaries differ.
        short: Log-probability under the short context.
        contexts: Log-probability at every K that was scored, the smallest first.
        since: Tokens since the previous mention of its word: 0 for a new word, None if it is not in a word, or the text
            was not stored.
    """

    document: str
    index: int
    start: int
    before: str
    text: str
    after: str
    lsd: float | None
    long: Sequence[float | None]
    short: float | None
    contexts: Sequence[float | None]
    since: int | None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Gain of a group of tokens from the long context: mean LSD, nats per token, with a 95 % interval."""

    value: float | None
    interval: Interval | None
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Evidence from all documents of a report.

    Attributes:
        judge: Index of the run to which `tokens`, `points` and `since` refer.
        contexts: K of `KeyToken.contexts`.
        tokens: The key tokens with the largest LSD, at most `MAX_TOKENS`.
        points: Key tokens for the scatter plot, at most `MAX_POINTS`.
        num_tokens: Total number of key tokens of the judge.
        wins: By index of a run: the number of key tokens that both it and the first run scored, and the number of these
            for which its log-probability is above the first run's.
        since: Counts of tokens in words, ``(2, classes)``: key tokens and others; new words first, then `DISTANCES`.
        gains: By index of a run with short-context scores, the gain of each of `GROUPS`; None if no text was stored.
        document_gains: By index of a run, by document: the mean LSD, nats per token.
        by: The field of the documents by which `field_gains` are grouped; None if no field was set.
        field_gains: By index of a run with short-context scores, by value of the field: the gain of the documents with
            this value. The `MAX_VALUES` values with the most tokens come first, then `OTHERS`.
    """

    judge: int
    contexts: Sequence[int]
    tokens: Sequence[KeyToken]
    points: Sequence[KeyToken]
    num_tokens: int
    wins: Mapping[int, tuple[int, int]]
    since: Ints
    gains: Mapping[int, Sequence[Gain]]
    document_gains: Mapping[int, Mapping[str, float]]
    by: str | None = None
    field_gains: Mapping[int, Mapping[str, Gain]] = field(default_factory=dict)


class EvidenceSums:
    """Accumulates `Evidence` as documents are read.

    Args:
        judge: Index of the run whose tokens are listed.
        shorts: The short context of each run.
        by: A field of the documents' rows; gains are also grouped by its values.
    """

    def __init__(self, judge: int, shorts: Sequence[ShortContext | None], by: str | None = None) -> None:
        self._judge, self._shorts, self._by = judge, shorts, by
        self._field: dict[int, dict[str, list[tuple[float, int]]]] = {}
        self._known_fields: set[str] = set()
        self._largest, self._drawn = Most[KeyToken](MAX_TOKENS), Most[KeyToken](MAX_POINTS)
        self._contexts: list[int] = []
        self._number = 0
        self._wins: dict[int, list[int]] = {}
        self._since = np.zeros((2, len(DISTANCES) + 2), dtype=np.int64)
        self._gains: dict[int, list[Doubles]] = {}
        self._document_gains: dict[int, dict[str, float]] = {}

    def add(self, documents: Sequence[ScoredDocument | None]) -> None:
        """Adds a document, as scored by each run; None if a run does not have the document."""
        for place, (document, short) in enumerate(zip(documents, self._shorts, strict=True)):
            if document is not None and short is not None and short in document.row.short:
                self._add_gains(place, document.row.at(context=short.context, stride=short.stride))
        judged = documents[self._judge]
        if judged is not None and judged.keys is not None:
            self._add_tokens(judged, judged.keys, documents)

    def _add_gains(self, place: int, row: TokenScores) -> None:
        lsd = row.lsd.astype(np.float64)
        finite = np.isfinite(lsd)
        if finite.any():
            self._document_gains.setdefault(place, {})[row.id] = float(lsd[finite].mean())
        if self._by is not None:
            self._known_fields.update(row.metadata)
            value = _field_value(row.metadata.get(self._by))
            sums_of = self._field.setdefault(place, {}).setdefault(value, [])
            sums_of.append((float(lsd[finite].sum()), int(np.count_nonzero(finite))))
        if row.text is None:
            return
        words = words_of(row.text)
        of_token = words_of_tokens(row.char_spans, words)
        kinds = np.where(of_token >= 0, np.append(words.kinds, 0)[of_token], KINDS.index("no word"))
        again = reoccurred_ngram_mask(row.text, row.char_spans)
        masks = [*(kinds == kind for kind in range(len(KINDS))), again, ~again]
        sums = [(lsd[finite & mask].sum(), np.count_nonzero(finite & mask)) for mask in masks]
        self._gains.setdefault(place, []).append(np.array(sums, dtype=np.float64))

    def _add_tokens(self, judged: ScoredDocument, keys: KeyTokens, documents: Sequence[ScoredDocument | None]) -> None:
        row, short = judged.row, self._shorts[self._judge]
        is_key = key_mask(judged)
        indices = np.flatnonzero(is_key)
        spans = row.char_spans[indices]
        long = np.stack([_of_spans(None if each is None else each.row, spans) for each in documents])
        shorter = None if short is None else row.short.get(short)
        lsd = (
            np.full(len(indices), np.nan)
            if shorter is None
            else (row.long_logprobs - shorter).astype(np.float64)[indices]
        )
        rising_shorts = rising(row)
        self._contexts = [each.context for each in rising_shorts]
        since = None
        if row.text is not None:
            words = words_of(row.text)
            since = tokens_since(row.char_spans, words_of_tokens(row.char_spans, words), words)
            self._count_since(since, is_key, np.zeros(len(is_key), bool) if shorter is None else ~np.isnan(shorter))
        self._number += len(indices)
        for place in range(len(documents)):
            both = np.isfinite(long[0]) & np.isfinite(long[place])
            counted = self._wins.setdefault(place, [0, 0])
            counted[0] += int(np.count_nonzero(both))
            counted[1] += int(np.count_nonzero(long[place][both] > long[0][both]))
        for number, index in enumerate(indices.tolist()):
            drawn = zlib.crc32(f"{index} {row.id}".encode("utf-8", "surrogatepass"))
            rank = -math.inf if math.isnan(lsd[number]) else float(lsd[number])
            kept = [most for most, value in ((self._largest, rank), (self._drawn, float(drawn))) if most.takes(value)]
            if not kept:
                continue
            token = KeyToken(
                document=row.id,
                index=index,
                start=int(spans[number, 0]),
                **excerpt(row.text, *spans[number].tolist()),
                lsd=_plain(lsd[number]),
                long=[_plain(value) for value in long[:, number]],
                short=None if shorter is None else _plain(shorter[index]),
                contexts=[_plain(row.short[each][index]) for each in rising_shorts],
                since=None if since is None or since[index] < 0 else int(since[index]),
            )
            for most in kept:
                most.add(rank if most is self._largest else float(drawn), token)

    def _count_since(self, since: Ints, is_key: Bools, is_scored: Bools) -> None:
        """Counts key tokens, and the other tokens that could have been key."""
        number = np.where(since == 0, 0, 1 + np.searchsorted(DISTANCES, since, side="left"))
        for row, mask in enumerate((is_key, ~is_key & is_scored)):
            self._since[row] += np.bincount(number[mask & (since >= 0)], minlength=len(DISTANCES) + 2)

    def result(self) -> Evidence:
        """Returns the evidence from all added documents.

        Raises:
            UserError: No document has the field `by`.
        """
        if self._by is not None and self._by not in self._known_fields:
            there = ", ".join(shown(name) for name in sorted(self._known_fields)[:10])
            raise UserError(
                f"`by` is {shown(self._by)}, and no document has such a field; "
                + (f"expected one of {there}" if there else "the run has none: score rows with fields (JSONL, Parquet)")
            )
        return Evidence(
            judge=self._judge,
            contexts=self._contexts,
            tokens=self._largest.sorted(),
            points=self._drawn.sorted(),
            num_tokens=self._number,
            wins={place: (both, more) for place, (both, more) in self._wins.items()},
            since=self._since,
            gains={place: [_gain(group) for group in np.stack(sums, axis=1)] for place, sums in self._gains.items()},
            document_gains=self._document_gains,
            by=self._by,
            field_gains={place: _field_gains(sums) for place, sums in self._field.items()},
        )


def key_mask(document: ScoredDocument) -> Bools:
    """``(n,)``: mask of the tokens that are key under a run; for the evaluator, exactly those that it selected."""
    assert document.keys is not None
    assert document.is_key is not None
    selected = document.keys.token_indices
    evaluated = document.evaluated
    if selected is None or evaluated is None or evaluated.token_ids is not document.row.token_ids:
        return document.is_key
    mask = np.zeros(len(document.row.token_ids), dtype=np.bool_)
    mask[selected] = True
    return mask


def rising(row: TokenScores) -> list[ShortContext]:
    """Returns one short context for each K that was scored, the smallest K first, with its smallest d."""
    of_context: dict[int, ShortContext] = {}
    for short in sorted(row.short):
        of_context.setdefault(short.context, short)
    return list(of_context.values())


def _of_spans(row: TokenScores | None, spans: Ints) -> Doubles:
    """``(k,)``: the total log-probability of the tokens of each span; NaN if token boundaries do not match."""
    if row is None or not len(row.char_spans):
        return np.full(len(spans), np.nan)
    starts, ends = row.char_spans[:, 0], row.char_spans[:, 1]
    first = np.minimum(np.searchsorted(starts, spans[:, 0], side="left"), len(starts) - 1)
    last = np.maximum(np.searchsorted(ends, spans[:, 1], side="right") - 1, 0)
    fits = (starts[first] == spans[:, 0]) & (ends[last] == spans[:, 1]) & (first <= last)
    logprobs = row.long_logprobs.astype(np.float64)
    return np.array(
        [logprobs[a : b + 1].sum() if fit else np.nan for a, b, fit in zip(first, last, fits, strict=True)],
        dtype=np.float64,
    )


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _gain(sums: Doubles) -> Gain:
    """Computes the gain from ``(documents, 2)`` sums of nats and tokens."""
    nats, number = sums.sum(axis=0)
    estimated = estimate(sums) if number >= MIN_TOKENS else None
    return Gain(
        value=float(nats / number) if number else None,
        interval=None if estimated is None else estimated.interval(),
        num_tokens=int(number),
    )


def _field_value(value: object) -> str:
    """Returns the name of a field value: its text, or its JSON."""
    return value if isinstance(value, str) else NO_VALUE if value is None else json.dumps(value, sort_keys=True)


def _field_gains(sums: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, Gain]:
    """Returns the gain by value, from sums of documents."""
    arrays = {value: np.array(own, dtype=np.float64) for value, own in sums.items()}
    largest = sorted(arrays, key=lambda value: (-arrays[value][:, 1].sum(), value))
    gains = {value: _gain(arrays[value]) for value in largest[:MAX_VALUES]}
    if rest := [arrays[value] for value in largest[MAX_VALUES:]]:
        gains[OTHERS] = _gain(np.concatenate(rest))
    return gains
