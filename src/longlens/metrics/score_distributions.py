"""How the scores of a run are distributed: over classes of LSD and of LCL, and along the documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.alignment import tokens_in_runs, tokens_touching
from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import AnswerSpans, choose_influence, influence_of
from longlens.metrics.documents import answer_runs
from longlens.scoring.scores import Scores, ShortContext, TokenScores

Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

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
    """How many tokens have a value in each of m + 1 classes.

    Class 0 is ``value < edges[0]``, class j is ``edges[j - 1] <= value < edges[j]``, class m is ``edges[-1] <= value``.

    Attributes:
        edges: ``(m,)`` nats, increasing.
        counts: ``(m + 1,)`` tokens.
        answers: ``(m + 1,)`` of the tokens that share a character with an answer; None where no answers were named.
        rest: ``(m + 1,)`` of the other tokens of the documents whose answers were named; None likewise.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    answers: tuple[int, ...] | None
    rest: tuple[int, ...] | None

    @property
    def shares(self) -> tuple[float, ...] | None:
        """``counts / sum(counts)``; None where there is no token."""
        return _shares(self.counts)

    @property
    def answer_shares(self) -> tuple[float, ...] | None:
        """``answers / sum(answers)``; None where there is no such token."""
        return _shares(self.answers)

    @property
    def rest_shares(self) -> tuple[float, ...] | None:
        """``rest / sum(rest)``; None where there is no such token."""
        return _shares(self.rest)

    def to_json(self) -> dict[str, Any]:
        """Lists; what does not exist is None."""
        names = ("edges", "counts", "answers", "rest", "shares", "answer_shares", "rest_shares")
        values = {name: getattr(self, name) for name in names}
        return {name: None if value is None else list(value) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Scores along the document: bin j is of tokens ``edges[j], …, edges[j + 1] - 1`` of every document, b bins.

    Means are over finite scores (a log-probability of -inf has none), and NaN where a bin has no such token.

    Attributes:
        edges: ``(b + 1,)`` int64, tokens, from 0 on; at most `MAX_BINS` bins, equally wide but for the last one.
        num_tokens: ``(b,)`` int64, scored tokens: those whose long score is not NaN.
        long_logprob: ``(b,)`` nats, mean of the long scores.
        short_logprob: ``(b,)`` nats, mean of the short scores over the tokens that have both scores; None where the
            run has no short scores.
        long_of_short: ``(b,)`` nats, mean of the long scores over the same tokens as `short_logprob`; None likewise.
        key_share: ``(b,)`` share of the scored tokens that are key (eq. 9); None without keys.
    """

    edges: Ints
    num_tokens: Ints
    long_logprob: Doubles
    short_logprob: Doubles | None
    long_of_short: Doubles | None
    key_share: Doubles | None

    def to_json(self) -> dict[str, Any]:
        """Lists; what does not exist is None, nothing is NaN."""
        means = ("long_logprob", "short_logprob", "long_of_short", "key_share")
        return {
            "edges": self.edges.tolist(),
            "num_tokens": self.num_tokens.tolist(),
            **{name: _without_nan(getattr(self, name)) for name in means},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Distributions:
    """What `distributions` finds.

    Attributes:
        model: Name of the model.
        lsd: Tokens that have an LSD (it is not NaN), by LSD (figures 3(a) and 4(a)); None without short scores.
        lcl: Those with an LSD above `LSD_FLOOR`, by LCL (figure 3(b)); None without short scores.
        positions: Scores along the document.
    """

    model: str
    lsd: Classes | None
    lcl: Classes | None
    positions: Positions

    def to_json(self) -> dict[str, Any]:
        """Plain values; what does not exist is None, nothing is NaN."""
        return {
            "model": self.model,
            "lsd": None if self.lsd is None else self.lsd.to_json(),
            "lcl": None if self.lcl is None else self.lcl.to_json(),
            "positions": self.positions.to_json(),
        }


def distributions(
    scores: Scores,
    *,
    keys: KeySource | None = None,
    short: ShortContext | None = None,
    answers: AnswerSpans | None = None,
    name: str | None = None,
) -> Distributions:
    """Counts tokens by LSD and LCL, and takes means along the documents; one pass, one document in memory at a time.

    Args:
        scores: Of the model that this is about.
        keys: Key tokens, its own or an evaluator's; more documents are fine.
        short: Which of its short contexts; the one that the scores were opened with by default.
        answers: `[start, end)` in characters of the answers, by document id; those that were stored with the scores
            by default.
        name: What the model is called; its name in the manifest unless given.

    Raises:
        UserError: There are no documents, one has no keys or those of another text; the short context was not scored;
            answers were given and are for none of the documents.
    """
    model = name or str(scores.manifest["model"]["name"])
    influence = choose_influence(None, keys)
    has_short = short is not None or bool(scores.short_contexts)
    by_lsd, by_lcl = (np.zeros((3, len(edges) + 1), dtype=np.int64) for edges in (LSD_EDGES, LCL_EDGES))
    cells = np.zeros((_NUM_SUMS, 0))
    num_documents = num_answered = 0
    for row in scores:
        num_documents += 1
        if short is not None:
            row = row.at(context=short.context, stride=short.stride)
        found, _, _ = influence_of(row, model, influence)
        key = None if found is None else tokens_in_runs(row.char_spans, found.char_runs)
        cells = _added(cells, _sums_along(row, key, has_short))
        spans = row.answer_spans if answers is None else answers.get(row.id)
        answer = None if spans is None else tokens_touching(row.char_spans, answer_runs(row, spans))
        num_answered += spans is not None
        if has_short:
            by_lsd += _class_counts(row.lsd, LSD_EDGES, answer)
            by_lcl += _class_counts(np.where(row.lsd > LSD_FLOOR, row.lcl, np.nan), LCL_EDGES, answer)
    if not num_documents:
        raise UserError(f"the scores of {model} hold no documents: score some, with longlens score DOCS")
    if answers is not None and not num_answered:
        raise UserError(f"answers were given for {list(answers)[:3]} …, and none of these documents was scored")
    return Distributions(
        model=model,
        lsd=_classes(LSD_EDGES, by_lsd, num_answered > 0) if has_short else None,
        lcl=_classes(LCL_EDGES, by_lcl, num_answered > 0) if has_short else None,
        positions=_positions(cells, has_short=has_short, has_keys=keys is not None),
    )


def _class_counts(values: npt.ArrayLike, edges: tuple[float, ...], answer: Bools | None) -> Ints:
    """``(3, m + 1)``: the classes of all values that are not NaN, of those of answer tokens, and of the rest."""
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
    """The sum of two, as long as the longer one."""
    longer, shorter = (cells, more) if cells.shape[1] >= more.shape[1] else (more, cells)
    longer[:, : shorter.shape[1]] += shorter
    return longer


def _positions(cells: Doubles, *, has_short: bool, has_keys: bool) -> Positions:
    """Bins of 1, 2, 4, 8, … cells, the least that gives `MAX_BINS` or fewer."""
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


def _without_nan(values: Doubles | None) -> list[float | None] | None:
    return None if values is None else [None if np.isnan(value) else value for value in values.tolist()]
