"""LongPPL at each pair of thresholds from one pass over the scores (the ablation of alpha and beta, appendix B.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.alignment import as_spans, characters_of
from longlens.metrics.corpus import Corpus, Ints, ScoredDocument, choose_influence
from longlens.metrics.uncertainty import Doubles
from longlens.scoring.scores import Scores, TokenScores
from longlens.settings.options import ALPHA, BETA, KeyRule, check_thresholds

_SPLIT_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class ThresholdTable:
    """LongPPL at each pair of thresholds, for A values of alpha and B values of beta.

    Attributes:
        alphas: ``(A,)`` nats.
        betas: ``(B,)`` nats; -inf in first position means no second criterion.
        logprob: ``(A, B)`` nats: sum of the evaluated model's long scores over its scored key tokens.
        num_tokens: ``(A, B)`` int64, the number of these tokens.
    """

    alphas: Doubles
    betas: Doubles
    logprob: Doubles
    num_tokens: Ints

    @property
    def longppl(self) -> Doubles:
        """``(A, B)``: ``exp(-logprob / num_tokens)`` (eq. 4); NaN if no token is key, or if it is infinite."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = np.exp(-self.logprob / self.num_tokens)
        return np.where(np.isfinite(value), value, np.nan)


def threshold_table(
    model_scores: Scores,
    evaluator_scores: Scores,
    *,
    alphas: Sequence[float] | Doubles,
    betas: Sequence[float] | Doubles,
    context: int | None = None,
    stride: int | None = None,
) -> ThresholdTable:
    """LongPPL at every alpha and beta, reading each document once.

    Entry ``[a, b]`` corresponds to ``perplexity(model_scores, evaluator_scores=evaluator_scores, alpha=alphas[a],
    beta=betas[b])``: its `longppl` and `num_key_tokens`, with ``use_lcl=False`` if the beta is -inf.

    The evaluator's token passes the first i alphas and the first j betas, i.e. those below its LSD and its LCL. A token
    of the evaluated model is key if each of its characters is covered by a key token of the evaluator (eq. 9). If each
    character is covered by one token, that is at the first ``min(i)`` alphas and ``min(j)`` betas over its characters;
    a table of the number of tokens with each such pair is summed from its far corner.

    Args:
        model_scores: Scores of the evaluated model.
        evaluator_scores: Scores of the evaluator, on the same texts; additional documents are ignored.
        alphas: Thresholds of the LSD, strictly increasing, nats.
        betas: Thresholds of the LCL, strictly increasing, nats; the first may be -inf.
        context: K in tokens, one of the evaluator's short contexts; by default the one with which its scores were
            opened.
        stride: d to use, if this K has several.

    Raises:
        UserError: Thresholds do not increase or are not finite; there are no documents; a document has no evaluator
            scores or those of another text; or the evaluator has no (such) short-context scores.
    """
    influence = choose_influence(evaluator_scores, None, KeyRule(context=context, stride=stride))
    sums = ThresholdSums(alphas, betas)
    for document in Corpus(model_scores, influence):
        sums.add(document)
    return sums.result()


class ThresholdSums:
    """Nats and numbers of the tokens that pass each pair of thresholds, over the documents that were added.

    Args:
        alphas: Thresholds of the LSD, strictly increasing, nats.
        betas: Thresholds of the LCL, strictly increasing, nats; the first may be -inf.

    Raises:
        UserError: Thresholds do not increase or are not finite.
    """

    def __init__(self, alphas: Sequence[float] | Doubles, betas: Sequence[float] | Doubles) -> None:
        self._alphas, self._betas = _increasing("alphas", alphas), _increasing("betas", betas)
        for alpha in self._alphas:
            check_thresholds(alpha, BETA)
        for beta in self._betas[1:] if self._betas[0] == -np.inf else self._betas:
            check_thresholds(ALPHA, beta)
        self._table = np.zeros((2, len(self._alphas), len(self._betas) + 1))

    def add(self, document: ScoredDocument) -> None:
        """Adds a document that has the evaluator's scores."""
        assert document.evaluated is not None
        self._table += _document_table(document.row, document.evaluated, self._alphas, self._betas)

    def result(self) -> ThresholdTable:
        """The table over the documents."""
        logprob, number = _at_least(self._table, axis=2)[:, :, 1:]
        return ThresholdTable(
            alphas=self._alphas, betas=self._betas, logprob=logprob, num_tokens=number.astype(np.int64)
        )


def _increasing(name: str, values: Sequence[float] | Doubles) -> Doubles:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise UserError(f"{name} are {values}, expected a list of at least one threshold, in nats")
    for before, after in itertools.pairwise(array):
        if not before < after:
            raise UserError(
                f"{name} have {after} after {before}, expected strictly increasing thresholds: sort them and remove "
                "duplicates and NaN"
            )
    return array


def _document_table(row: TokenScores, evaluated: TokenScores, alphas: Doubles, betas: Doubles) -> Doubles:
    """``(2, A, B + 1)``: at each alpha, nats and number of tokens that pass 0, 1, …, B betas.

    Sums are added and never subtracted, so that a score of -inf causes no NaN and affects only entries where its token
    is key.
    """
    spans, logprobs = as_spans(row.char_spans), row.long_logprobs.astype(np.float64)
    asked = ~np.isnan(logprobs) & (spans[:, 1] > spans[:, 0])
    spans, logprobs = spans[asked], logprobs[asked]
    weights = np.stack([logprobs, np.ones(len(logprobs))])

    # if LCL is -inf or NaN, so is LSD, which then passes no alpha; so a beta of -inf, which LCL does not pass, has no
    # effect
    passed = np.stack([_num_below(alphas, evaluated.lsd), _num_below(betas, evaluated.lcl)])
    source = as_spans(evaluated.char_spans)
    length = int(max(spans[:, 1].max(initial=0), source[:, 1].max(initial=0))) + 1
    tokens, first = _tokens_of_characters(source, length)
    number = np.diff(first)
    split = (-_least(-number, spans) > 1) & (_least(number, spans) > 0)

    of_character = np.zeros((2, length), dtype=np.int64)  # an uncovered character passes no threshold
    of_character[:, np.repeat(np.arange(length), number)] = passed[:, tokens]
    of_plain = _least(of_character, spans[~split])
    table = _at_least(_histogram(of_plain, weights[:, ~split], (len(alphas) + 1, len(betas) + 1)), axis=1)[:, 1:]
    for start in range(0, np.count_nonzero(split), _SPLIT_TOKENS_AT_ONCE):
        some = np.flatnonzero(split)[start : start + _SPLIT_TOKENS_AT_ONCE]
        of_split = _betas_at_alphas(spans[some], passed, tokens, first, len(alphas))
        alpha, token = np.indices(of_split.shape).reshape(2, -1)
        table += _histogram(np.stack([alpha, of_split.ravel()]), weights[:, some][:, token], table.shape[1:])
    return table


def _num_below(thresholds: Doubles, values: npt.ArrayLike) -> Ints:
    """Number of thresholds below each value; 0 for NaN."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(values), 0, np.searchsorted(thresholds, values, side="left"))


def _tokens_of_characters(spans: Ints, length: int) -> tuple[Ints, Ints]:
    """The tokens that cover character c are ``tokens[first[c] : first[c + 1]]``; first is ``(length + 1,)``."""
    characters = characters_of(spans)
    tokens = np.repeat(np.arange(len(spans)), spans[:, 1] - spans[:, 0])
    number = np.bincount(characters, minlength=length)
    return tokens[np.argsort(characters, kind="stable")], np.concatenate([[0], np.cumsum(number)])


def _least(of_character: Ints, spans: Ints) -> Ints:
    """``(…, n)``: the minimum in each of n spans, which are not empty and end before the last character."""
    least: Ints = np.minimum.reduceat(of_character, spans.ravel(), axis=-1)[..., ::2]  # odd entries: between two spans
    return least


def _betas_at_alphas(spans: Ints, passed: Ints, tokens: Ints, first: Ints, num_alphas: int) -> Ints:
    """``(A, n)``: number of betas that each span passes at each alpha, if several tokens may cover a character.

    A character is key if any of its tokens is, so it passes the maximum over its tokens that pass the alpha; a span
    passes the minimum over its characters. Every character is covered.
    """
    characters = characters_of(spans)
    covering = tokens[characters_of(np.stack([first[characters], first[characters + 1]], axis=1))]
    alphas, betas = passed[:, covering]
    of_token = np.where(np.arange(num_alphas)[:, None] < alphas, betas, 0)
    number = first[characters + 1] - first[characters]
    of_character = np.maximum.reduceat(of_token, np.cumsum(number) - number, axis=1)
    lengths = spans[:, 1] - spans[:, 0]
    of_span: Ints = np.minimum.reduceat(of_character, np.cumsum(lengths) - lengths, axis=1)
    return of_span


def _histogram(places: Ints, weights: Doubles, shape: tuple[int, ...]) -> Doubles:
    """``(2, *shape)``: sums of the ``(2, n)`` weights over the tokens at each of the ``(2, n)`` places."""
    flat = np.ravel_multi_index(tuple(places), shape)
    sums = [np.bincount(flat, weights=weight, minlength=math.prod(shape)) for weight in weights]
    return np.stack(sums).astype(np.float64).reshape(-1, *shape)  # without tokens bincount returns integers


def _at_least(table: Doubles, *, axis: int) -> Doubles:
    """Sums over all entries at or after each position: ``flip(cumsum(flip(table)))``."""
    return np.flip(np.cumsum(np.flip(table, axis), axis), axis)
