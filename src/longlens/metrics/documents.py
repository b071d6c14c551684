"""What a metric needs to know of a document, so that corpus values are sums over documents and read scores once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.corpus.document import Spans, check_answer_spans
from longlens.errors import shown
from longlens.keytokens.alignment import as_spans, merge_spans, tokens_in_runs, tokens_touching
from longlens.metrics.ngram import reoccurred_ngram_mask
from longlens.scoring.scores import TokenScores

Doubles = npt.NDArray[np.float64]


class WeightedSum(NamedTuple):
    """``sum(w * logprob)`` in nats and ``sum(w)``, which is a number of tokens where all w are 1; float64."""

    logprob: float
    weight: float

    @property
    def ppl(self) -> float | None:
        """``exp(-logprob / weight)``; None where there is no weight, or where it is infinite."""
        if self.weight == 0:
            return None
        with np.errstate(over="ignore"):
            value = float(np.exp(-self.logprob / self.weight))
        return value if np.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class DocumentStatistics:
    """Sums over the scored tokens of one document; a scored token is one whose log-probability is not NaN.

    Attributes:
        id: The document's id.
        text_sha256: Hash of its text.
        truncated: Whether it was cut before it was scored.
        num_characters: From the start of the first scored token to the end of the last one.
        num_key_characters: Characters that the key tokens cover.
        scored: Over all scored tokens.
        key: Over key tokens (eq. 9); None without keys.
        soft: Over all, weighted by the influence that the evaluator's tokens carry over (eq. 10); None without
            evaluator scores.
        from_context: Over tokens K, K + 1, … of this model; None where no K is known.
        ngram: Over tokens of re-occurred n-grams; None where that was not asked for, or the text was not stored.
        answers: Over tokens that share a character with an answer; None where no answer was named.
        rest: Over the other tokens of a document whose answers were named.
        num_impossible: Scored tokens of probability 0 (a log-probability of -inf).
        num_unscored: Tokens without a log-probability, which should be the first one at most.
    """

    id: str
    text_sha256: str
    truncated: bool
    num_characters: int
    num_key_characters: int | None
    scored: WeightedSum
    key: WeightedSum | None
    soft: WeightedSum | None
    from_context: WeightedSum | None
    ngram: WeightedSum | None
    answers: WeightedSum | None
    rest: WeightedSum | None
    num_impossible: int
    num_unscored: int

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        return int(self.scored.weight)

    @property
    def num_key_tokens(self) -> int | None:
        """Scored tokens of this model that are key; None without keys."""
        return None if self.key is None else int(self.key.weight)

    @property
    def ppl(self) -> float | None:
        """Perplexity of the document (eq. 1)."""
        return self.scored.ppl

    @property
    def longppl(self) -> float | None:
        """LongPPL of the document (eq. 4); None where it has no key tokens."""
        return None if self.key is None else self.key.ppl


def document_statistics(
    row: TokenScores,
    *,
    char_runs: npt.NDArray[np.int64] | None = None,
    weights: Doubles | None = None,
    context: int | None = None,
    answer_spans: Spans | None = None,
    ngram: bool = False,
) -> DocumentStatistics:
    """The sums over one document.

    Args:
        row: The evaluated model's scores.
        char_runs: ``(m, 2)`` runs of characters of key tokens.
        weights: ``(n,)`` influence of this model's tokens.
        context: K, tokens.
        answer_spans: `[start, end)` in characters, in any order.
        ngram: Whether to find re-occurred n-grams.

    Raises:
        UserError: The answer spans are no spans.
    """
    logprobs = row.long_logprobs.astype(np.float64)
    scored = ~np.isnan(logprobs)

    def over(tokens: npt.NDArray[np.bool_]) -> WeightedSum:
        chosen = logprobs[tokens & scored]
        return WeightedSum(float(chosen.sum()), float(len(chosen)))

    key = None if char_runs is None else tokens_in_runs(row.char_spans, char_runs)
    soft = None
    if weights is not None:
        weighty = scored & (weights > 0)  # else 0 * -inf
        soft = WeightedSum(float((weights[weighty] * logprobs[weighty]).sum()), float(weights[weighty].sum()))
    answer = None if answer_spans is None else tokens_touching(row.char_spans, answer_runs(row, answer_spans))
    copied = reoccurred_ngram_mask(row.text, row.char_spans) if ngram and row.text is not None else None
    covered = merge_spans(row.char_spans[scored])
    return DocumentStatistics(
        id=row.id,
        text_sha256=row.text_sha256,
        truncated=row.truncated,
        num_characters=int(covered[-1, 1] - covered[0, 0]) if len(covered) else 0,
        num_key_characters=None if key is None else int(np.diff(merge_spans(row.char_spans[key & scored])).sum()),
        scored=over(scored),
        key=None if key is None else over(key),
        soft=soft,
        from_context=None if context is None else over(np.arange(len(logprobs)) >= context),
        ngram=None if copied is None else over(copied),
        answers=None if answer is None else over(answer),
        rest=None if answer is None else over(~answer),
        num_impossible=int(np.isneginf(logprobs).sum()),
        num_unscored=int(np.count_nonzero(~scored)),
    )


def answer_runs(row: TokenScores, answer_spans: Spans) -> npt.NDArray[np.int64]:
    """The runs of characters of the answers of a document.

    Raises:
        UserError: They are no list of spans, or one is reversed or negative.
    """
    # A text that was cut may have had its answer behind the cut.
    characters = None if row.text is None or row.truncated else len(row.text)
    return merge_spans(as_spans(check_answer_spans(answer_spans, f"document {shown(row.id)}", characters)))


def column(sums: Iterable[WeightedSum | None]) -> Doubles | None:
    """``(n, 2)`` float64, a row a document, zeros for one without; None where all are without."""
    rows = list(sums)
    if all(row is None for row in rows):
        return None
    return np.array([row or (0.0, 0.0) for row in rows], dtype=np.float64)


def corpus_sum(sums: Doubles | None) -> WeightedSum | None:
    """The sum over documents; None where there is none."""
    return None if sums is None else WeightedSum(*(float(total) for total in sums.sum(axis=0)))
