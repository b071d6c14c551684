"""Gains: what each document gains at each K, on all, key and answer tokens, and curves with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.alignment import merge_spans
from longlens.metrics.corpus import Bools, Corpus
from longlens.metrics.uncertainty import (
    MIN_TOKENS,
    Doubles,
    Interval,
    drawn_values,
    linearised,
    percentile_interval,
    quantile,
    scaled_deviations,
)
from longlens.scoring.scores import Scores, ShortContext, TokenScores

REACHED = 0.9
MIN_DOCUMENTS = 5
MIN_CONTEXTS = 3
Tokens = Literal["all", "keys", "answers"]
"""The tokens of a curve."""


class DocumentGains(NamedTuple):
    """Sums of one document over its tokens in S: gains at K_1, …, K_m and the whole context, ``(m + 1,)`` nats."""

    gains: Doubles
    num_tokens: int
    num_characters: int


class GainSums:
    """The gains of every document of a corpus.

    Args:
        corpus: The corpus whose documents are added; its keys are selected at K_1.

    Raises:
        UserError: Fewer than three K were scored, or d > K/2.

    Attributes:
        shorts: K_1 < K_2 < … < K_m, each with its smallest d.
        num_near: Number of evaluator tokens near a threshold.
        num_key_tokens: Number of key tokens of the evaluator.
        num_short: Number of documents of K_m tokens or fewer.
        num_incomplete: Number of documents that lack one of the short contexts.
        num_left_out: Number of tokens without a finite score under one of the contexts.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.name = corpus, corpus.scores.name
        self.shorts = rising_contexts(corpus.scores)
        self.num_near = self.num_key_tokens = self.num_short = self.num_left_out = 0
        self.num_incomplete = corpus.scores.num_incomplete
        self._texts: dict[str, str] = {}
        self._gains: dict[str, dict[str, DocumentGains]] = {tokens: {} for tokens in get_args(Tokens)}

    @property
    def contexts(self) -> tuple[int, ...]:
        """K_1, …, K_m."""
        return tuple(short.context for short in self.shorts)

    @property
    def texts(self) -> dict[str, str]:
        """Hash of the text of each document that counts, by ID, in order."""
        return dict(sorted(self._texts.items()))

    def of(self, tokens: Tokens) -> list[DocumentGains]:
        """The gains of each document on these tokens, sorted by ID, so that the order of scoring has no effect."""
        return [gains for _, gains in sorted(self._gains[tokens].items())]

    def add(self, row: TokenScores, evaluated: TokenScores | None) -> None:
        """Adds a document that was scored at every K: the model's scores, and the evaluator's if there are any.

        Raises:
            UserError: As for `Corpus.document`.
        """
        shorts = self.shorts
        if any(short not in row.short for short in shorts):
            self.num_incomplete += 1
            return
        document = self.corpus.document(row, evaluated)
        logprobs = np.stack([*(row.short[short] for short in shorts), row.long_logprobs]).astype(np.float64)
        late = np.arange(logprobs.shape[1]) >= shorts[-1].context
        usable = late & np.isfinite(logprobs).all(axis=0)
        self.num_short += not late.any()
        self.num_left_out += int(np.count_nonzero(late & ~usable))
        if document.keys is not None:
            self.num_near += document.keys.num_near_threshold or 0
            self.num_key_tokens += document.keys.num_key_tokens or 0
        self._texts[row.id] = row.text_sha256
        for tokens, chosen in (("all", usable), ("keys", document.is_key), ("answers", document.is_answer)):
            if chosen is not None:
                self._gains[tokens][row.id] = _document_gains(row, logprobs, usable & chosen)


def smallest_strides(scores: Scores) -> list[ShortContext]:
    """The short contexts by increasing K, each K with its smallest d."""
    by_context: dict[int, ShortContext] = {}
    for short in sorted(scores.short_contexts):
        by_context.setdefault(short.context, short)
    return list(by_context.values())


def rising_contexts(scores: Scores) -> list[ShortContext]:
    """K_1 < K_2 < … < K_m, each with its smallest d.

    Raises:
        UserError: There are fewer than three, or d > K/2.
    """
    strides = dict(smallest_strides(scores))
    name = scores.name
    if len(strides) < MIN_CONTEXTS:
        have = ", ".join(f"K={context}" for context in strides) or "no short context"
        raise UserError(
            f"{name} was scored at {have}, and context reach needs at least {MIN_CONTEXTS} different K: score it with "
            "several, such as `context=64,128,256` and `stride=32,64,128`"
        )
    for context, stride in strides.items():
        if 2 * stride > context:
            raise UserError(
                f"{name} was scored at K={context} with d={stride}, so tokens have {context} to {context + stride - 1} "
                f"tokens of context; context reach requires d <= K/2: score with `context={context}` and "
                f"`stride={max(1, context // 2)}`"
            )
    return [ShortContext(context, stride) for context, stride in strides.items()]


def check_reference(model: GainSums, reference: GainSums) -> None:
    """Rejects a reference that cannot be compared with the model.

    Raises:
        UserError: The reference was scored at other K, or on other documents or texts.
    """
    wanted, have = (",".join(map(str, gains.contexts)) for gains in (model, reference))
    if have != wanted:
        raise UserError(
            f"the reference {reference.name} was scored at K={have} and {model.name} at K={wanted}: score both with "
            f"the same contexts, such as `context={wanted}`"
        )
    ours, theirs = model.texts, reference.texts
    for id in sorted(ours.keys() | theirs.keys()):
        pair = ours.get(id), theirs.get(id)
        if pair[0] != pair[1]:
            unlike = "different texts in the scores of" if None not in pair else "not in both of the scores of"
            raise UserError(
                f"document {id!r} is {unlike} {model.name} and of the reference {reference.name}: score the same "
                "documents with both, with the same `max_length` and `truncate_with`"
            )


def _document_gains(row: TokenScores, logprobs: Doubles, chosen: Bools) -> DocumentGains:
    return DocumentGains(
        gains=(logprobs[:, chosen] - logprobs[0, chosen]).sum(axis=1),
        num_tokens=int(np.count_nonzero(chosen)),
        num_characters=int(np.diff(merge_spans(row.char_spans[chosen])).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A step at which more context reduced the raw gain, which the isotonic fit hides.

    Attributes:
        from_context: K_j.
        to_context: K_{j+1}.
        nats: ``G(K_j) - G(K_{j+1})``, above 0.
        interval: 95 % interval of `nats`; None if the curve has no intervals.
    """

    from_context: int
    to_context: int
    nats: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The gain of one model on one set S of tokens. Intervals are 95 %, over documents (`metrics.uncertainty`).

    Attributes:
        contexts: K_1, …, K_m.
        gains: G at each of them, nats per token; raw.
        gain_intervals: Intervals of `gains`; None, as all intervals, with fewer than 5 documents or 20 tokens in S.
        fit: G̃ at each of them.
        whole_gain: Gain under the whole context of each token, nats per token.
        max_gain: max G̃, which is its last value. The maximum of pure noise is above 0 more often than not.
        max_gain_interval: Interval of `max_gain`.
        reach: R, tokens; None if `max_gain` is not above 0, or its interval includes 0.
        reach_interval: Interval of `reach`: the fit and R are recomputed from gains drawn from their t distribution, as
            for `max_gain_interval`; None if `reach` is.
        censored: Whether R lies in the last step, so that a larger K could move it: R is a lower bound.
        reach_interval_censored: Whether the upper end of `reach_interval` lies in the last step.
        drops: The steps in which G fell.
        num_tokens: Number of tokens in S.
        num_characters: Number of characters that they cover.
        num_documents: Number of documents that have tokens in S.
        reference_share: ``max_gain * num_tokens / num_characters``, nats per character, divided by that of the
            reference on its own tokens; None without a reference, or if its gain is not significantly above 0.
    """

    contexts: tuple[int, ...]
    gains: tuple[float, ...]
    gain_intervals: tuple[Interval, ...] | None
    fit: tuple[float, ...]
    whole_gain: float
    max_gain: float
    max_gain_interval: Interval | None
    reach: float | None
    reach_interval: Interval | None
    censored: bool
    reach_interval_censored: bool
    drops: tuple[Drop, ...]
    num_tokens: int
    num_characters: int
    num_documents: int
    reference_share: float | None = None


def effective_reach(contexts: Sequence[int], fit: npt.ArrayLike) -> float | None:
    """R, the smallest K with ``G̃(K) >= 0.9 * G̃(K_m)``, where G̃ is linear in log K between the contexts.

    Args:
        contexts: ``(m,)`` K, increasing.
        fit: ``(m,)`` G̃ at each, nats; nondecreasing, and the first not above 0.

    Returns:
        R in tokens; None if the last value is not above 0.
    """
    values = np.asarray(fit, dtype=np.float64)
    if values[-1] <= 0:
        return None
    wanted = REACHED * values[-1]
    step = int(np.searchsorted(values, wanted))  # the first K that reaches it; not K_1, whose value is not above 0
    low, high = contexts[step - 1], contexts[step]
    part = (wanted - values[step - 1]) / (values[step] - values[step - 1])
    return float(min(low * (high / low) ** part, high))


def _isotonic(gains: Doubles) -> Doubles:
    from scipy.optimize import isotonic_regression  # slow to import, and not every command needs it

    fit: Doubles = isotonic_regression(gains).x
    return fit


def curve_of(
    contexts: tuple[int, ...],
    sums: Sequence[DocumentGains],
    reference: Sequence[DocumentGains],
    seed: int,
    resamples: int,
) -> Curve | None:
    """The curve of some tokens; None if there are none.

    Args:
        contexts: K_1, …, K_m.
        sums: The gains of every document on these tokens.
        reference: The same for the reference; None without one.
        seed: Seed of the draws that give intervals.
        resamples: Number of draws.
    """
    columns = _columns(sums)
    num_tokens = sum(document.num_tokens for document in sums)
    if not num_tokens:
        return None
    *gains, whole_gain = columns[:, :-1].sum(axis=0) / num_tokens
    fit = _isotonic(np.array(gains))
    reached = effective_reach(contexts, fit)
    intervals = _intervals(contexts, columns, seed, resamples)
    if intervals is not None and intervals.max_gain[0] <= 0:
        reached = None
    reach_interval = intervals.reach if intervals and reached is not None else None
    own, others = _gain_per_character(sums), _gain_per_character(reference)
    share = None if own is None or others is None or others <= 0 else own / others
    if share is not None:
        theirs = _intervals(contexts, _columns(reference), seed, resamples)
        if theirs is not None and theirs.max_gain[0] <= 0:  # cannot be distinguished from 0
            share = None
    return Curve(
        contexts=contexts,
        gains=tuple(float(gain) for gain in gains),
        gain_intervals=intervals and intervals.gains,
        fit=tuple(float(value) for value in fit),
        whole_gain=float(whole_gain),
        max_gain=float(fit[-1]),
        max_gain_interval=intervals and intervals.max_gain,
        reach=reached,
        reach_interval=reach_interval,
        censored=reached is not None and reached > contexts[-2],
        reach_interval_censored=reach_interval is not None and reach_interval[1] > contexts[-2],
        drops=tuple(
            Drop(
                from_context=contexts[j],
                to_context=contexts[j + 1],
                nats=float(gains[j] - gains[j + 1]),
                interval=intervals and intervals.drops[j],
            )
            for j in range(len(contexts) - 1)
            if gains[j + 1] < gains[j]
        ),
        num_tokens=num_tokens,
        num_characters=sum(document.num_characters for document in sums),
        num_documents=int(np.count_nonzero(columns[:, -1])),
        reference_share=share,
    )


class CurveIntervals(NamedTuple):
    """The 95 % intervals of a curve; `reach` is None if no draw has one."""

    gains: tuple[Interval, ...]
    drops: tuple[Interval, ...]
    max_gain: Interval
    reach: Interval | None


def curve_intervals(contexts: tuple[int, ...], columns: Doubles, seed: int, resamples: int) -> CurveIntervals | None:
    """Intervals of gains and drops by the rule for ratios; of the fit's maximum and of R from draws of the gains.

    The interval of R is over the draws that have one. None if one document has all the tokens.

    Args:
        contexts: ``(m,)`` K.
        columns: ``(n, m + 2)``: one document's sums of gains at each K and under the whole context, and its tokens.
        seed: Seed of the draws.
        resamples: Number of draws.
    """
    gains, deviations, shares = linearised(columns[:, :-2].T, columns[:, -1])
    both = scaled_deviations(deviations, shares)
    if both is None:
        return None
    scaled, freedom = both
    fits = np.array([_isotonic(drawn) for drawn in drawn_values(gains, scaled, freedom, seed, resamples).T])
    reaches = [reached for fit in fits if (reached := effective_reach(contexts, fit)) is not None]

    def intervals(values: Doubles, scaled: Doubles) -> tuple[Interval, ...]:
        half = quantile(freedom) * np.sqrt((scaled**2).sum(axis=1))
        return tuple(zip((values - half).tolist(), (values + half).tolist(), strict=True))

    return CurveIntervals(
        gains=intervals(gains, scaled),
        drops=intervals(-np.diff(gains), np.diff(scaled, axis=0)),
        max_gain=percentile_interval(fits[:, -1]),
        reach=percentile_interval(np.array(reaches)) if reaches else None,
    )


def _intervals(contexts: tuple[int, ...], columns: Doubles, seed: int, resamples: int) -> CurveIntervals | None:
    """The intervals, if there are enough documents and tokens."""
    tokens = columns[:, -1]
    if np.count_nonzero(tokens) < MIN_DOCUMENTS or tokens.sum() < MIN_TOKENS:
        return None
    return curve_intervals(contexts, columns, seed, resamples)


def _columns(sums: Sequence[DocumentGains]) -> Doubles:
    """``(n, m + 2)``: a document's sums of gains at each K and under the whole context, and its tokens."""
    return np.array([[*document.gains, document.num_tokens] for document in sums], dtype=np.float64)


def _gain_per_character(sums: Sequence[DocumentGains]) -> float | None:
    """The largest gain, nats per character of S; None if S has no characters."""
    num_characters = sum(document.num_characters for document in sums)
    if not num_characters:
        return None
    total: Doubles = np.sum([document.gains for document in sums], axis=0)
    return float(_isotonic(total[:-1])[-1] / num_characters)
