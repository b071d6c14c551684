"""Perplexity, LongPPL and LongPPL-soft of a corpus from stored scores; no model is run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import AnswerSpans, Corpus, choose_influence, read_corpus
from longlens.metrics.documents import DocumentStatistics, WeightedSum, column, corpus_sum
from longlens.metrics.uncertainty import MIN_TOKENS, Doubles, Interval, estimate
from longlens.scoring.scores import Scores

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """What `perplexity` finds. A value that does not exist, or is infinite, is None.

    Attributes:
        model: Name of the evaluated model.
        evaluator: Name of the evaluator; None without one.
        ppl: Perplexity (eq. 1).
        longppl: LongPPL on key tokens (eq. 4).
        longppl_soft: LongPPL with soft weights (eq. 7, 10); needs evaluator scores.
        bits_per_character: Over the characters from the first scored token on; comparable across tokenizers.
        key_bits_per_character: The same on key tokens and the characters that they cover.
        ppl_from_context: Perplexity on the tokens K, K + 1, … of the evaluated model.
        ppl_ngram: Perplexity on re-occurred n-grams (appendix B.7); None unless it was asked for.
        ppl_answers: Perplexity on answer tokens (section 2.1).
        ppl_rest: Perplexity on the other tokens of the documents with answers.
        num_tokens: Scored tokens; those that `ppl` is about.
        num_key_tokens: Scored tokens of the evaluated model that are key; None without an evaluator.
        num_from_context_tokens: Those that `ppl_from_context` is about; likewise the next three.
        num_ngram_tokens: See there.
        num_answer_tokens: See there.
        num_rest_tokens: See there.
        num_documents: Documents.
        truncated_documents: Documents that were cut before they were scored.
        intervals: 95 % intervals of ``ppl``, ``longppl`` and ``longppl_soft`` over documents, see
            `longlens.metrics.uncertainty`; None where fewer than 2 documents or 20 tokens decide the value.
        settings: ``context``, ``stride``, ``alpha``, ``beta``, ``gamma``, ``lcl``; of the evaluated model ``bos``,
            ``max_length``, ``dtype``; ``evaluator_bos`` and ``evaluator_dtype`` where they differ from the model's.
        documents: The sums for each document, sorted by id.
        warnings: What has to be known before a number is relied on, a sentence each.
    """

    model: str
    evaluator: str | None
    ppl: float | None
    longppl: float | None
    longppl_soft: float | None
    bits_per_character: float | None
    key_bits_per_character: float | None
    ppl_from_context: float | None
    ppl_ngram: float | None
    ppl_answers: float | None
    ppl_rest: float | None
    num_tokens: int
    num_key_tokens: int | None
    num_from_context_tokens: int | None
    num_ngram_tokens: int | None
    num_answer_tokens: int | None
    num_rest_tokens: int | None
    num_documents: int
    truncated_documents: int
    intervals: Mapping[str, Interval | None]
    settings: Mapping[str, Any]
    documents: Sequence[DocumentStatistics]
    warnings: Sequence[str]

    def to_json(self, *, per_document: bool = False) -> dict[str, Any]:
        """The object that ``longlens perplexity --json`` prints; what does not exist is None, nothing is NaN.

        Args:
            per_document: Whether to add ``documents``.
        """
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "documents"}
        plain["intervals"] = {name: None if both is None else list(both) for name, both in self.intervals.items()}
        plain["settings"] = dict(self.settings)
        plain["warnings"] = list(self.warnings)
        if per_document:
            names = ("id", "ppl", "longppl", "num_tokens", "num_key_tokens")
            plain["documents"] = [{name: getattr(document, name) for name in names} for document in self.documents]
        return {"schema_version": SCHEMA_VERSION, **plain}


def perplexity(
    model_scores: Scores,
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    use_lcl: bool | None = None,
    context: int | None = None,
    stride: int | None = None,
    answers: AnswerSpans | None = None,
    ngram: bool = False,
) -> PerplexityResult:
    """Perplexities of a corpus, ``exp(-sum(w * logprob) / sum(w))`` over the scored tokens of all its documents.

    w is 1 for `ppl` (eq. 1), 1 on key tokens and 0 elsewhere for `longppl` (eq. 4, carried over by eq. 9), and
    ``min(exp(LSD), gamma)`` carried over by eq. 10 for `longppl_soft`, where tokens without short score weigh 0.

    The published script ``perplexity.py`` has the same LongPPL, and another corpus PPL: it takes a document's mean over
    its n - 1 scored tokens n times, ``exp(-sum(n * sum_d / (n - 1)) / sum(n))``, where ours is
    ``exp(-sum(sum_d) / sum(n - 1))``. With one document they are equal. Its key token at token 0 takes the loss of the
    last token; ours is key only where it has a score.

    Args:
        model_scores: Of the evaluated model.
        evaluator_scores: Of the evaluator, on the same texts; more documents are fine.
        keys: Key tokens instead, selected before; more documents are fine. There is no `longppl_soft` then.
        alpha: As in `select_key_tokens`, nats; 2 by default.
        beta: As in `select_key_tokens`, nats; -2 by default.
        gamma: Largest soft weight; 5 by default.
        use_lcl: As in `select_key_tokens`; true by default.
        context: Which of the evaluator's short contexts, K tokens; that with which they were opened by default. Without
            evaluator and keys it only says where `ppl_from_context` begins.
        stride: Which of its strides.
        answers: `[start, end)` in characters of the answers, by document id, in place of those that were stored with
            the scores; a document without is in neither `ppl_answers` nor `ppl_rest`.
        ngram: Whether to find re-occurred n-grams, for `ppl_ngram`.

    Raises:
        UserError: Evaluator scores and keys at once, settings that keys have already or that select nothing, no
            documents, a document without evaluator scores or keys, or with those of another text.

    Warns:
        LonglensWarning: Tokens stand nearer to a threshold than the error of the evaluator's dtype.
    """
    influence = choose_influence(
        evaluator_scores,
        keys,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        use_lcl=use_lcl,
        context=context,
        stride=stride,
    )
    corpus = read_corpus(model_scores, influence, answers, ngram=ngram)
    corpus.warn()
    return summarize(corpus)


def summarize(corpus: Corpus) -> PerplexityResult:
    """Corpus values and intervals from the statistics of documents."""
    documents = corpus.documents
    scored, key = column(d.scored for d in documents), column(d.key for d in documents)
    soft = column(d.soft for d in documents)
    num_tokens, num_key_tokens = _number(corpus_sum(scored)) or 0, _number(corpus_sum(key))
    ends = {"ppl": (scored, num_tokens), "longppl": (key, num_key_tokens or 0), "longppl_soft": (soft, num_tokens)}
    intervals = {name: _interval(*end) for name, end in ends.items()}
    totals = {name: corpus_sum(column(getattr(d, name) for d in documents)) for name in _GROUPS}
    return PerplexityResult(
        model=corpus.model,
        evaluator=corpus.evaluator,
        ppl=_ppl(corpus_sum(scored)),
        longppl=_ppl(corpus_sum(key)),
        longppl_soft=_ppl(corpus_sum(soft)),
        bits_per_character=_bits(corpus_sum(character_column(documents))),
        key_bits_per_character=_bits(corpus_sum(key_character_column(documents))),
        ppl_from_context=_ppl(totals["from_context"]),
        ppl_ngram=_ppl(totals["ngram"]),
        ppl_answers=_ppl(totals["answers"]),
        ppl_rest=_ppl(totals["rest"]),
        num_tokens=num_tokens,
        num_key_tokens=num_key_tokens,
        num_from_context_tokens=_number(totals["from_context"]),
        num_ngram_tokens=_number(totals["ngram"]),
        num_answer_tokens=_number(totals["answers"]),
        num_rest_tokens=_number(totals["rest"]),
        num_documents=len(documents),
        truncated_documents=sum(d.truncated for d in documents),
        intervals=intervals,
        settings=corpus.settings,
        documents=documents,
        warnings=[*corpus.notes, *_notes_on_intervals(corpus.model, ends, intervals)],
    )


_GROUPS = ("from_context", "ngram", "answers", "rest")


def character_column(documents: Sequence[DocumentStatistics]) -> Doubles | None:
    """``(n, 2)``: nats over scored tokens, and their characters."""
    return column(WeightedSum(d.scored.logprob, d.num_characters) for d in documents)


def key_character_column(documents: Sequence[DocumentStatistics]) -> Doubles | None:
    """``(n, 2)``: nats over key tokens, and the characters that they cover; None without keys."""
    return column(None if d.key is None else WeightedSum(d.key.logprob, d.num_key_characters or 0) for d in documents)


def _ppl(total: WeightedSum | None) -> float | None:
    return None if total is None else total.ppl


def _bits(total: WeightedSum | None) -> float | None:
    if total is None or not total.weight or not math.isfinite(total.logprob):
        return None
    return -total.logprob / math.log(2) / total.weight


def _number(total: WeightedSum | None) -> int | None:
    return None if total is None else int(total.weight)


def _interval(sums: Doubles | None, num_tokens: int) -> Interval | None:
    """Of a perplexity: the interval of its nats per token, which are above 0, on their logarithmic scale."""
    found = None if sums is None or num_tokens < MIN_TOKENS else estimate(sums)
    nats = None if found is None else found.interval(relative=True)
    if nats is None:
        return None
    with np.errstate(over="ignore"):
        high, low = np.exp(-np.array(nats))
    return (float(low), float(high)) if np.isfinite(high) else None


def _notes_on_intervals(
    model: str, ends: Mapping[str, tuple[Doubles | None, int]], intervals: Mapping[str, Interval | None]
) -> list[str]:
    """Why a value that exists has no interval."""
    names: dict[str, list[str]] = {}
    for name, (sums, num_tokens) in ends.items():
        if sums is not None and _ppl(corpus_sum(sums)) is not None and intervals[name] is None:
            names.setdefault(why_no_interval(sums, num_tokens), []).append(_TITLES[name])
    return [
        f"{' and '.join(titles)} of {model} {'has' if len(titles) == 1 else 'have'} no interval: {why}"
        for why, titles in names.items()
    ]


_TITLES = {"ppl": "PPL", "longppl": "LongPPL", "longppl_soft": "LongPPL-soft"}


def why_no_interval(sums: Doubles, num_tokens: int) -> str:
    """Why a value of these sums, which rests on so many tokens, has no interval."""
    if num_tokens < MIN_TOKENS:
        return f"{num_tokens} tokens decide it, and at least {MIN_TOKENS} are needed"
    if np.count_nonzero(sums[:, 1]) < 2:
        return "all of its tokens are in one document, and at least 2 are needed"
    return "its documents are too few and differ too much"
