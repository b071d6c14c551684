"""Key tokens of documents, computed lazily from the evaluator's stored scores."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from longlens.errors import LonglensWarning
from longlens.keytokens.alignment import merge_spans
from longlens.keytokens.influence import hard_influence, logprob_error, num_near_threshold
from longlens.scoring.scores import (
    Scores,
    SequenceById,
    ShortContext,
    TokenScores,
    choose_short_context,
    identity_of,
)
from longlens.settings.options import ALPHA, BETA, KeyRule


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyTokens:
    """The key tokens of one document.

    Attributes:
        id: The document's id.
        text_sha256: Hash of the text to which the runs refer.
        char_runs: ``(m, 2)`` int64: the characters of the key tokens, adjacent ones merged; `[start, end)`.
        token_indices: ``(k,)`` int64, indices of the evaluator's key tokens; None if read from a file.
        num_key_tokens: k; None if it was not recorded.
        num_near_threshold: Number of tokens closer to a threshold than the error of the dtype; None if read from a
            file.
    """

    id: str
    text_sha256: str
    char_runs: npt.NDArray[np.int64]
    token_indices: npt.NDArray[np.int64] | None = None
    num_key_tokens: int | None = None
    num_near_threshold: int | None = None


class KeySource(Protocol):
    """Interface of the ``keys`` argument of `longlens.perplexity`: `KeyTokensView`, or
    `longlens.keytokens.exchange.Keys` read from a file.

    ``settings`` has ``evaluator``, ``evaluator_sha256`` (`ModelIdentity.sha256`), ``alpha``, ``beta``, ``lcl``,
    ``context``, ``stride``, ``bos`` and ``dtype``, each None if it was not recorded; ``get`` raises KeyError if there
    is no such document.
    """

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the documents, in order."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings with which the tokens were selected."""
        ...

    def get(self, id: str) -> KeyTokens:
        """The key tokens of the document with this id."""
        ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[KeyTokens]: ...


class KeyTokensView(SequenceById[KeyTokens]):
    """The key tokens of every scored document, in the order of the scores; recomputed on each access."""

    def __init__(self, scores: Scores, short: ShortContext | None, rule: KeyRule) -> None:
        recorded = scores.manifest["settings"]
        self.ids, self._scores, self._short = scores.ids, scores, short
        alpha, beta = ALPHA if rule.alpha is None else rule.alpha, BETA if rule.beta is None else rule.beta
        self._rule: dict[str, Any] = {"alpha": alpha, "beta": beta, "use_lcl": rule.lcl is not False}
        self._error = logprob_error(str(recorded.get("dtype")))
        self.settings: Mapping[str, Any] = {
            "evaluator": scores.name,
            "evaluator_sha256": identity_of(scores).sha256,
            "alpha": alpha,
            "beta": beta,
            "lcl": rule.lcl is not False,
            "context": short.context if short else None,
            "stride": short.stride if short else None,
            "bos": recorded.get("bos"),
            "dtype": recorded.get("dtype"),
        }

    def get(self, id: str) -> KeyTokens:
        """The key tokens of the document with this id.

        Raises:
            KeyError: There is no such document.
        """
        return self.of(self._scores.get(id))

    def scores_of(self, id: str) -> TokenScores:
        """The evaluator's scores of a document, under the short context used for the selection.

        Raises:
            KeyError: There is no such document.
        """
        return self._at(self._scores.get(id))

    def of(self, row: TokenScores) -> KeyTokens:
        """The key tokens of a document of these scores that has been read already."""
        row = self._at(row)
        indices = np.flatnonzero(hard_influence(row.lsd, row.lcl, **self._rule))
        return KeyTokens(
            id=row.id,
            text_sha256=row.text_sha256,
            char_runs=merge_spans(row.char_spans[indices]),
            token_indices=indices.astype(np.int64),
            num_key_tokens=len(indices),
            num_near_threshold=num_near_threshold(row.lsd, row.lcl, error=self._error, **self._rule),
        )

    def _at(self, row: TokenScores) -> TokenScores:
        if self._short is None or self._short == row.selected:
            return row
        return row.at(context=self._short.context, stride=self._short.stride)


def select_key_tokens(
    scores: Scores,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    use_lcl: bool | None = None,
    context: int | None = None,
    stride: int | None = None,
) -> KeyTokensView:
    """Selects key tokens, ``LSD > alpha and LCL > beta`` (eq. 4), document by document.

    Documents not longer than the short context have no key tokens. Documents are processed lazily.

    Args:
        scores: The evaluator's scores.
        alpha: Threshold of the long-short difference, nats; 2 by default.
        beta: Threshold of the long-context likelihood, nats; -2 by default.
        use_lcl: False selects by LSD only, without beta.
        context: K, one of the scored short contexts, in tokens; by default the one with which the scores were opened,
            which is the largest unless another was specified there.
        stride: d to use, if this K has several.

    Raises:
        UserError: The run has no (such) short-context scores, a threshold is not finite, or beta is passed although
            ``use_lcl=False``.
    """
    rule = KeyRule(alpha=alpha, beta=beta, lcl=use_lcl)
    available = scores.short_contexts
    if not available and len(scores):
        scores[0].short_logprobs  # noqa: B018  raises the error that explains how to get them
    short = scores.selected if available else None
    if available and (context is not None or stride is not None):
        short = choose_short_context(available, context, stride)
    return KeyTokensView(scores, short, rule)


def near_threshold_message(count: int, total: int, dtype: str | None) -> str | None:
    """The warning about tokens near a threshold; None if there are none.

    Args:
        count: Number of tokens that could change between key and not key.
        total: Number of key tokens.
        dtype: Dtype of the evaluator; None if it was not recorded, ``unknown`` if a server does not report it.
    """
    if not count:
        return None
    error = logprob_error(str(dtype))
    is_final = dtype in ("float32", "float64", "unknown")  # scoring again would not reduce the error
    advice = "consider them undecided" if is_final else "score the evaluator with `dtype=float32`"
    if dtype in (None, "unknown"):
        dtype = "an unknown dtype"
    return (
        f"{count} tokens are within {error:g} nats of alpha or beta, the error of a log-probability in {dtype} "
        f"({total} key tokens in total): on another machine or with another batch size, they may change between key "
        f"and not key; {advice}"
    )


def warn_near_threshold(count: int, total: int, dtype: str | None, *, stacklevel: int = 3) -> None:
    """Warns once for a whole corpus, if at all: see `near_threshold_message`.

    Warns:
        LonglensWarning: `count` is above 0.
    """
    message = near_threshold_message(count, total, dtype)
    if message:
        warnings.warn(message, LonglensWarning, stacklevel=stacklevel)
