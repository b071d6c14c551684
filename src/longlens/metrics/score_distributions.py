"""How the scores of a run are distributed: over classes of LSD and of LCL, and along the documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import AnswerSpans, Bools, Corpus, Influence, Ints, ScoredDocument, choose_influence
from longlens.metrics.uncertainty import Doubles
from longlens.scoring.scores import Scores, ShortContext, TokenScores, choose_short_context
from longlens.settings.options import KeyRule
from longlens.tables import Tabular, plain

# Paper, section 2.2 on figures 3(a) and 4(a): "most tokens in a natural corpus [...] are long-context-irrelevant tokens
# with low LSD (lower than 0.5), while only less than 10% tokens are highly influenced by long context (with LSD > 2)".
LSD_EDGES = (-2.0, -0.5, 0.5, 2.0)
# Paper, figure 3(b): "Distribution of tokens with LSD greater than 0.5 categorized by long-context likelihood (LCL)."
LSD_FLOOR = 0.5
LCL_EDGES = (-8.0, -4.0, -2.0, -1.0, -0.5)

MAX_BINS = 32
_CELL = 64


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Number of tokens with a value in each of m + 1 classes.

    Class 0 is ``value < edges[0]``, class j is ``edges[j - 1] <= value < edges[j]``, class m is ``edges[-1] <= value``.

    Attributes:
        edges: ``(m,)`` nats, increasing.
        counts: ``(m + 1,)`` tokens.
        answers: ``(m + 1,)`` tokens that share a character with an answer; None if no answers were specified.
        rest: ``(m + 1,)`` the other tokens of documents with answers; None if no answers were specified.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    answers: tuple[int, ...] | None
    rest: tuple[int, ...] | None

    @property
    def shares(self) -> tuple[float, ...] | None:
        """``counts / sum(counts)``; None if there is no token."""
        return _shares(self.counts)

    @property
    def answer_shares(self) -> tuple[float, ...] | None:
        """``answers / sum(answers)``; None if there is no such token."""
        return _shares(self.answers)

    @property
    def rest_shares(self) -> tuple[float, ...] | None:
        """``rest / sum(rest)``; None if there is no such token."""
        return _shares(self.rest)

    def to_json(self) -> dict[str, Any]:
        """Returns lists; missing values are None."""
        return {name: plain(getattr(self, name)) for name in ("edges", *_CLASS_VALUES)}


_CLASS_VALUES = ("counts", "answers", "rest", "shares", "answer_shares", "rest_shares")
_POSITION_VALUES = ("num_tokens", "long_logprob", "short_logprob", "long_of_short", "key_share")


@dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Scores along the document: bin j contains tokens ``edges[j], …, edges[j + 1] - 1`` of each document, for b bins.

    Means are over finite scores (a log-probability of -inf has none), and NaN if a bin has no such token.

    Attributes:
        edges: ``(b + 1,)`` int64, tokens, from 0; at most `MAX_BINS` bins, equally wide except for the last one.
        num_tokens: ``(b,)`` int64, scored tokens: those whose long score is not NaN.
        long_logprob: ``(b,)`` nats, mean of the long scores.
        short_logprob: ``(b,)`` nats, mean of the short-context scores over the tokens that have both scores; None if
            the run has no short-context scores.
        long_of_short: ``(b,)`` nats, mean of the long scores over the same tokens as `short_logprob`; None if the run
            has no short-context scores.
        key_share: ``(b,)`` share of the scored tokens that are key (eq. 9); None without keys.
    """

    edges: Ints
    num_tokens: Ints
    long_logprob: Doubles
    short_logprob: Doubles | None
    long_of_short: Doubles | None
    key_share: Doubles | None

    def to_json(self) -> dict[str, Any]:
        """Returns lists; missing values are None, never NaN."""
        return {name: plain(getattr(self, name)) for name in ("edges", *_POSITION_VALUES)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Distributions(Tabular):
    """Distributions of a model's scores.

    As a table, one row per class or bin: ``distribution`` (``lsd``, ``lcl``, ``positions``), its edges ``from`` and
    ``to``, and the values of this distribution.

    Attributes:
        model: Name of the model.
        lsd: Tokens that have an LSD (it is not NaN), by LSD (figures 3(a) and 4(a)); None without short-context scores.
        lcl: Those with an LSD above `LSD_FLOOR`, by LCL (figure 3(b)); None without short-context scores.
        positions: Scores along the document.
    """

    model: str
    lsd: Classes | None
    lcl: Classes | None
    positions: Positions

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; missing values are None, never NaN."""
        return {
            "model": self.model,
            "lsd": None if self.lsd is None else self.lsd.to_json(),
            "lcl": None if self.lcl is None else self.lcl.to_json(),
            "positions": self.positions.to_json(),
        }

    def _columns(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {
            name: [] for name in ("model", "distribution", "from", "to", *_CLASS_VALUES, *_POSITION_VALUES)
        }
        for name in ("lsd", "lcl", "positions"):
            part = getattr(self, name)
            if part is None:
                continue
            values = part.to_json()
            edges = values.pop("edges") if name == "positions" else [None, *values.pop("edges"), None]
            rows = len(edges) - 1
            values |= {"model": [self.model] * rows, "distribution": [name] * rows, "from": edges[:-1], "to": edges[1:]}
            for column, known in columns.items():
                known += values.get(column) or [None] * rows
        return columns


def distributions(
    scores: Scores,
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    use_lcl: bool | None = None,
    context: int | None = None,
    stride: int | None = None,
    answers: AnswerSpans | None = None,
) -> Distributions:
    """Counts tokens by LSD and LCL, and averages scores by position; in one pass over the stored documents.

    LSD refers to the short context at which key tokens are selected; if the model was not scored there, or without key
    tokens, to the one with which its scores were opened.

    Args:
        scores: Scores of the model.
        evaluator_scores: Scores of the evaluator, on the same texts: `key_share` counts its key tokens.
        keys: Key tokens, instead of evaluator scores; additional documents are ignored.
        alpha: Threshold of the long-short difference, nats; 2 by default.
        beta: Threshold of the long-context likelihood, nats; -2 by default.
        use_lcl: False selects by LSD only, without beta.
        context: K in tokens, one of the evaluator's short contexts; without evaluator and keys, one of the model's.
        stride: d to use, if this K has several.
        answers: ``[start, end)`` in characters of the answers, by document id, instead of the stored ones.

    Raises:
        UserError: There are no documents; a document has no keys or those of another text; the short context was not
            scored; or answers were passed for none of the documents.
    """
    rule = KeyRule(alpha=alpha, beta=beta, lcl=use_lcl, context=context, stride=stride)
    influence = choose_influence(evaluator_scores, keys, rule)
    short = short_of(scores, influence)
    if influence.keys is None and context is not None:
        short = choose_short_context(scores.short_contexts, context)
    corpus = Corpus(scores, influence, answers)
    sums = DistributionSums(corpus, short)
    for document in corpus:
        sums.add(document)
    return sums.result()


def short_of(scores: Scores, influence: Influence) -> ShortContext | None:
    """The short context of the key tokens; the model's own if it was not scored there, or without key tokens."""
    wanted = None if influence.keys is None else (influence.context, influence.stride)
    return next((short for short in scores.short_contexts if short == wanted), scores.selected)


class DistributionSums:
    """Counts and sums over the documents of a corpus.

    Args:
        corpus: The corpus whose documents are added.
        short: The short context of LSD; None in a run without short-context scores.
    """

    def __init__(self, corpus: Corpus, short: ShortContext | None) -> None:
        self._corpus, self._short = corpus, short
        self._lsd, self._lcl = (np.zeros((3, len(edges) + 1), dtype=np.int64) for edges in (LSD_EDGES, LCL_EDGES))
        self._cells = np.zeros((_NUM_SUMS, 0))
        self._has_answers = False

    def add(self, document: ScoredDocument) -> None:
        """Adds a document."""
        row, answer = document.row, document.is_answer
        if self._short is not None:
            row = row.at(context=self._short.context, stride=self._short.stride)
            self._lsd += _class_counts(row.lsd, LSD_EDGES, answer)
            self._lcl += _class_counts(np.where(row.lsd > LSD_FLOOR, row.lcl, np.nan), LCL_EDGES, answer)
        self._cells = _added(self._cells, _sums_along(row, document.is_key, self._short is not None))
        self._has_answers |= answer is not None

    def result(self) -> Distributions:
        """The distributions over the documents that were added."""
        has_short = self._short is not None
        return Distributions(
            model=self._corpus.name,
            lsd=_classes(LSD_EDGES, self._lsd, self._has_answers) if has_short else None,
            lcl=_classes(LCL_EDGES, self._lcl, self._has_answers) if has_short else None,
            positions=_positions(self._cells, has_short=has_short, has_keys=self._corpus.influence.keys is not None),
        )


def _class_counts(values: npt.ArrayLike, edges: tuple[float, ...], answer: Bools | None) -> Ints:
    """``(3, m + 1)``: counts per class of all values that are not NaN, of those of answer tokens, and of the rest."""
    values = np.asarray(values, dtype=np.float64)
    number = np.searchsorted(edges, values, side="right")
    no_token = np.zeros(len(values), dtype=np.bool_)
    groups = [~no_token, *([no_token, no_token] if answer is None else [answer, ~answer])]
    return np.stack([np.bincount(number[group & ~np.isnan(values)], minlength=len(edges) + 1) for group in groups])


def _classes(edges: tuple[float, ...], counts: Ints, has_answers: bool) -> Classes:
    every, answers, rest = (tuple(group) for group in counts.tolist())
    return Classes(
        edges=edges, counts=every, answers=answers if has_answers else None, rest=rest if has_answers else None
    )


def _shares(counts: tuple[int, ...] | None) -> tuple[float, ...] | None:
    if counts is None or not sum(counts):
        return None
    return tuple(count / sum(counts) for count in counts)


_NUM_SUMS = 7


def _sums_along(row: TokenScores, key: Bools | None, has_short: bool) -> Doubles:
    """``(7, cells)``: sums over the tokens 0 to 63, 64 to 127, … of the document, in the order of `_positions`."""
    long = row.long_logprobs.astype(np.float64)
    short = row.short_logprobs.astype(np.float64) if has_short else np.full(len(long), np.nan)
    scored, finite = ~np.isnan(long), np.isfinite(long)
    both = finite & np.isfinite(short)
    columns = [scored, finite, both, scored & (False if key is None else key)]
    columns += [np.where(finite, long, 0.0), np.where(both, long, 0.0), np.where(both, short, 0.0)]
    starts = np.arange(0, len(long), _CELL)
    return np.add.reduceat(np.stack(columns), starts, axis=1) if len(starts) else np.zeros((_NUM_SUMS, 0))


def _added(cells: Doubles, more: Doubles) -> Doubles:
    """The sum of two arrays, as long as the longer one."""
    longer, shorter = (cells, more) if cells.shape[1] >= more.shape[1] else (more, cells)
    longer[:, : shorter.shape[1]] += shorter
    return longer


def _positions(cells: Doubles, *, has_short: bool, has_keys: bool) -> Positions:
    """Bins of 1, 2, 4, 8, … cells, the smallest size with at most `MAX_BINS` bins."""
    num_cells, width = cells.shape[1], 1
    while width * MAX_BINS < num_cells:
        width *= 2
    starts = np.arange(0, num_cells, width)
    bins = np.add.reduceat(cells, starts, axis=1) if num_cells else cells
    scored, finite, both, key, long, long_of_both, short_of_both = bins
    return Positions(
        edges=_CELL * np.append(starts, num_cells),
        num_tokens=scored.astype(np.int64),
        long_logprob=_ratio(long, finite),
        short_logprob=_ratio(short_of_both, both) if has_short else None,
        long_of_short=_ratio(long_of_both, both) if has_short else None,
        key_share=_ratio(key, scored) if has_keys else None,
    )


def _ratio(total: Doubles, number: Doubles) -> Doubles:
    ratio: Doubles = np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)
    return ratio
