"""Perplexity, LongPPL and LongPPL-soft of a corpus from stored scores; no model is run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longlens.keytokens.selection import KeySource, near_threshold_message, warn_near_threshold
from longlens.metrics.corpus import (
    AnswerSpans,
    Corpus,
    DocumentStatistics,
    ScoredDocument,
    WeightedSum,
    choose_influence,
    document_statistics,
    is_evaluator,
)
from longlens.metrics.uncertainty import MIN_TOKENS, Doubles, Interval, estimate
from longlens.scoring.scores import Scores, tail_tokens
from longlens.settings.options import KeyRule
from longlens.tables import Tabular, plain

SCHEMA_VERSION = 1
_PER_DOCUMENT = ("id", "ppl", "longppl", "num_tokens", "num_key_tokens")


@dataclass(frozen=True, kw_only=True)
class PerplexityResult(Tabular):
    """Perplexities of a corpus. Undefined or infinite values are None. As a table: one row per document.

    Attributes:
        model: Name of the evaluated model, see `longlens.scoring.scores.display_name`.
        evaluator: Name of the evaluator; None without one.
        ppl: Perplexity (eq. 1).
        longppl: LongPPL on key tokens (eq. 4).
        longppl_soft: LongPPL with soft weights (eq. 7, 10); needs evaluator scores.
        bits_per_character: Bits per character from the first scored token to the end; comparable across tokenizers.
        key_bits_per_character: The same for key tokens and the characters that they cover.
        ppl_from_context: Perplexity on the tokens K, K + 1, … of the evaluated model.
        ppl_ngram: Perplexity on re-occurred n-grams (appendix B.7); None unless requested.
        ppl_answers: Perplexity on answer tokens (section 2.1).
        ppl_rest: Perplexity on the other tokens of the documents with answers.
        num_tokens: Number of scored tokens, over which `ppl` is computed.
        num_key_tokens: Number of scored tokens of the evaluated model that are key; None without an evaluator.
        num_from_context_tokens: Tokens of `ppl_from_context`.
        num_ngram_tokens: Tokens of `ppl_ngram`.
        num_answer_tokens: Tokens of `ppl_answers`.
        num_rest_tokens: Tokens of `ppl_rest`.
        num_documents: Number of documents.
        truncated_documents: Number of documents that were truncated before scoring.
        intervals: 95 % intervals of ``ppl``, ``longppl`` and ``longppl_soft`` over documents, see
            `longlens.metrics.uncertainty`; None if the value depends on fewer than 2 documents or 20 tokens.
        settings: ``context``, ``stride``, ``alpha``, ``beta``, ``gamma``, ``lcl``; of the evaluated model ``bos``,
            ``max_length``, ``dtype`` and ``model``, its path or id; ``evaluator_bos`` and ``evaluator_dtype`` if
            they differ from the model's.
        documents: The sums of each document, sorted by id.
        warnings: Caveats about the numbers, one sentence each.
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
        """The object that ``longlens perplexity --json`` prints; missing values are None, never NaN.

        Args:
            per_document: Whether to add ``documents``.
        """
        values = {name: plain(getattr(self, name)) for name in self.__dataclass_fields__ if name != "documents"}
        if per_document:
            values["documents"] = [
                {name: getattr(document, name) for name in _PER_DOCUMENT} for document in self.documents
            ]
        return {"schema_version": SCHEMA_VERSION, **values}

    def _columns(self) -> dict[str, list[Any]]:
        return {name: [getattr(document, name) for document in self.documents] for name in _PER_DOCUMENT}


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

    w is 1 for `ppl` (eq. 1), 1 on key tokens and 0 elsewhere for `longppl` (eq. 4, mapped by eq. 9), and
    ``min(exp(LSD), gamma)`` mapped by eq. 10 for `longppl_soft`, with w = 0 for tokens without a short-context score.

    The published script ``perplexity.py`` computes the same LongPPL but another corpus PPL. It weights a document's
    mean over its n - 1 scored tokens by n, ``exp(-sum(n * sum_d / (n - 1)) / sum(n))``; here it is ``exp(-sum(sum_d) /
    sum(n - 1))``. With one document they are equal. There, a key token at token 0 has the loss of the last token; here
    it is key only if it has a score.

    Args:
        model_scores: Scores of the evaluated model.
        evaluator_scores: Scores of the evaluator on the same texts; additional documents are ignored.
        keys: Key tokens, instead of evaluator scores; additional documents are ignored. `longppl_soft` is then None.
        alpha: Threshold of the long-short difference, nats; 2 by default.
        beta: Threshold of the long-context likelihood, nats; -2 by default.
        gamma: Maximum weight in `longppl_soft`; 5 by default.
        use_lcl: False selects by LSD only, without beta.
        context: K, if the evaluator has several short contexts; by default the K with which its scores were opened.
            Without evaluator and keys, it only sets where `ppl_from_context` begins.
        stride: d to use, if this K has several.
        answers: ``[start, end)`` in characters of the answers, by document id; replaces those that were stored with
            the scores. A document without answers is in neither `ppl_answers` nor `ppl_rest`.
        ngram: Whether to find re-occurred n-grams, for `ppl_ngram`.

    Raises:
        UserError: Both evaluator scores and keys, settings that conflict with keys or select nothing, no
            documents, a document without evaluator scores or keys, or with those of another text.

    Warns:
        LonglensWarning: Tokens are closer to a threshold than the error of the evaluator's dtype.
    """
    rule = KeyRule(alpha=alpha, beta=beta, gamma=gamma, lcl=use_lcl, context=context, stride=stride)
    corpus = Corpus(model_scores, choose_influence(evaluator_scores, keys, rule), answers)
    sums = PerplexitySums(corpus, ngram=ngram)
    for document in corpus:
        sums.add(document)
    sums.warn()
    return sums.result()


class PerplexitySums:
    """Collects the sums of each document of a corpus, and warnings about them.

    Args:
        corpus: The corpus whose documents are added.
        ngram: Whether to find re-occurred n-grams.
    """

    def __init__(self, corpus: Corpus, *, ngram: bool = False) -> None:
        self.corpus, self._ngram = corpus, ngram
        influence, selected = corpus.influence, corpus.scores.selected
        self._context = influence.context
        if influence.keys is None and influence.context is None and selected is not None:
            self._context = selected.context
        self._documents: list[DocumentStatistics] = []
        self._num_near = self._num_key_tokens = self._longest = 0

    def add(self, document: ScoredDocument) -> None:
        """Adds a document."""
        if document.keys is not None:
            self._num_near += document.keys.num_near_threshold or 0
            self._num_key_tokens += document.keys.num_key_tokens or 0
        self._longest = max(self._longest, len((document.evaluated or document.row).token_ids))
        self._documents.append(document_statistics(document, context=self._context, ngram=self._ngram))

    @property
    def _near(self) -> tuple[int, int, str | None]:
        """Evaluator tokens near a threshold, its key tokens, and its dtype."""
        keys = self.corpus.influence.keys
        return self._num_near, self._num_key_tokens, None if keys is None else keys.settings["dtype"]

    def warn(self) -> None:
        """Warns about tokens near a threshold, with the stack level of the caller's caller."""
        warn_near_threshold(*self._near, stacklevel=4)

    def result(self) -> PerplexityResult:
        """Corpus values and intervals from the sums of the documents."""
        documents = sorted(self._documents, key=lambda document: document.id)  # so that their order has no effect
        columns = {name: column(documents, name) for name in _GROUPS}
        totals = {name: _total(sums) for name, sums in columns.items()}
        num_tokens, num_key_tokens = _number(totals["scored"]) or 0, _number(totals["key"])
        ends = {
            "ppl": (columns["scored"], num_tokens),
            "longppl": (columns["key"], num_key_tokens or 0),
            "longppl_soft": (columns["soft"], num_tokens),
        }
        intervals = {name: perplexity_interval(*end) for name, end in ends.items()}
        without: dict[str, list[str]] = {}
        for name, (_, why) in intervals.items():
            if why is not None:
                without.setdefault(why, []).append(_TITLES[name])
        notes = [
            f"{' and '.join(titles)} of {self.corpus.name} {'has' if len(titles) == 1 else 'have'} no interval: {why}"
            for why, titles in without.items()
        ]
        influence = self.corpus.influence
        return PerplexityResult(
            model=self.corpus.name,
            evaluator=None if influence.keys is None else influence.keys.settings["evaluator"],
            ppl=_ppl(totals["scored"]),
            longppl=_ppl(totals["key"]),
            longppl_soft=_ppl(totals["soft"]),
            bits_per_character=_bits(totals["characters"]),
            key_bits_per_character=_bits(totals["key_characters"]),
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
            intervals={name: interval for name, (interval, _) in intervals.items()},
            settings=self._settings(),
            documents=documents,
            warnings=[*self._notes(documents), *notes],
        )

    def _settings(self) -> dict[str, Any]:
        recorded, influence = self.corpus.scores.manifest["settings"], self.corpus.influence
        chosen = {} if influence.keys is None else influence.keys.settings
        settings: dict[str, Any] = {
            "context": self._context,
            "stride": influence.stride,
            "alpha": chosen.get("alpha"),
            "beta": chosen.get("beta"),
            "gamma": influence.gamma,
            "lcl": chosen.get("lcl"),
            **{name: recorded.get(name) for name in ("bos", "max_length", "dtype")},
            "model": self.corpus.scores.manifest["model"]["name"],
        }
        for name in ("bos", "dtype"):
            if chosen.get(name) not in (None, settings[name]):
                settings[f"evaluator_{name}"] = chosen[name]
        return settings

    def _notes(self, documents: Sequence[DocumentStatistics]) -> list[str]:
        scores, influence, model = self.corpus.scores, self.corpus.influence, self.corpus.name
        notes = []
        if scores.num_incomplete:
            notes.append(
                f"{scores.num_incomplete} documents lack the short context that is requested and are left out: run the "
                "same longlens score command again to finish them"
            )
        if (tail := tail_tokens(scores)) is not None:
            cache = scores.manifest["model"]["cache"]
            notes.append(
                f"{model} was scored under the cache policy {cache}, which affects only the last {tail:,} tokens of "
                "each document, and perplexities are over all tokens: use longlens cost"
            )
        if is_evaluator(scores, influence.evaluator, influence.keys):
            notes.append(
                f"{model} is its own evaluator: the paper (appendix B.2, table 6) finds that such a LongPPL says "
                "little of long-context ability; use a strong long-context model as the evaluator"
            )
        extra = 0 if influence.evaluator is None else len(influence.evaluator) - len(scores)
        if extra > 0:
            notes.append(f"{extra} documents of the evaluator were not scored with {model} and are left out")
        if near := near_threshold_message(*self._near):
            notes.append(near)
        if impossible := {document.id: n for document in documents if (n := document.num_impossible)}:
            notes.append(
                f"{_names(impossible)}: {sum(impossible.values())} tokens have probability 0 under {model}, so that "
                "every perplexity they are part of is infinite and reported as null"
            )
        if unscored := {document.id: n for document in documents if (n := document.num_unscored) > 1}:
            notes.append(
                f"{_names(unscored)}: {sum(unscored.values())} tokens have no log-probability under {model}, where "
                "only a first token should have none; the model may have returned NaN"
            )
        if self._ngram and all(document.ngram is None for document in documents):
            notes.append(f"{model} was scored without texts, so there is no perplexity on re-occurred n-grams")
        if all(document.num_key_tokens == 0 for document in documents):
            notes.append(f"no token of {model} is key, so it has no LongPPL: {self._why_no_key_tokens()}")
        return notes

    def _why_no_key_tokens(self) -> str:
        """Why there are no key tokens: documents too short, none selected, or none inside a run."""
        context = self.corpus.influence.context
        if self._num_key_tokens:
            return f"none of its tokens lies inside one of the {self._num_key_tokens:,} key tokens of the evaluator"
        if context is not None and self._longest <= context:
            return (
                f"the longest document has {self._longest:,} tokens, and only tokens after the first {context:,} (K) "
                "can be key; score longer documents, or with a smaller `context`"
            )
        return "the evaluator selects none in these documents; a lower `alpha` or `beta` selects more"


_GROUPS = ("scored", "characters", "key", "key_characters", "soft", "from_context", "ngram", "answers", "rest")
_TITLES = {"ppl": "PPL", "longppl": "LongPPL", "longppl_soft": "LongPPL-soft"}


def column(documents: Sequence[DocumentStatistics], name: str) -> Doubles | None:
    """``(n, 2)``: the weighted sums of this name, one row per document (zeros without one); None if none has one."""
    rows = [getattr(document, name) for document in documents]
    if all(row is None for row in rows):
        return None
    return np.array([row or (0.0, 0.0) for row in rows], dtype=np.float64)


def _total(sums: Doubles | None) -> WeightedSum | None:
    return None if sums is None else WeightedSum(*(float(total) for total in sums.sum(axis=0)))


def _ppl(total: WeightedSum | None) -> float | None:
    return None if total is None else total.ppl


def _bits(total: WeightedSum | None) -> float | None:
    if total is None or not total.weight or not math.isfinite(total.logprob):
        return None
    return -total.logprob / math.log(2) / total.weight


def _number(total: WeightedSum | None) -> int | None:
    return None if total is None else int(total.weight)


def perplexity_interval(sums: Doubles | None, num_tokens: int) -> tuple[Interval | None, str | None]:
    """The 95 % interval of a perplexity, or why an existing one has no interval.

    It is the interval of its nats per token, which are above 0, computed on the log scale.

    Args:
        sums: ``(n, 2)``, one row per document: log-probability and weight.
        num_tokens: Number of tokens on which it depends.
    """
    if sums is None or _ppl(_total(sums)) is None:
        return None, None
    if num_tokens < MIN_TOKENS:
        return None, f"{num_tokens} tokens are too few, at least {MIN_TOKENS} are needed"
    if np.count_nonzero(sums[:, 1]) < 2:
        return None, "all of its tokens are in one document, and at least 2 are needed"
    estimated = estimate(sums)
    nats = None if estimated is None else estimated.interval(relative=True)
    with np.errstate(over="ignore"):
        high, low = (np.inf, np.inf) if nats is None else np.exp(-np.array(nats))
    if not np.isfinite(high):
        return None, "its documents are too few and differ too much"
    return (float(low), float(high)), None


def _names(documents: Mapping[str, int]) -> str:
    first = ", ".join(repr(id) for id in list(documents)[:3])
    return f"document {first}" if len(documents) == 1 else f"{len(documents)} documents ({first}, …)"
