"""Whether one model is better than another: paired differences over the same documents, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from longlens.errors import UserError
from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import AnswerSpans, Corpus, choose_influence, read_once
from longlens.metrics.longppl import PerplexityResult, PerplexitySums, column
from longlens.metrics.uncertainty import MIN_TOKENS, Doubles, Estimate, Interval, estimate, quantile
from longlens.scoring.scores import Scores, names_of
from longlens.settings.options import KeyRule
from longlens.tables import Tabular, plain

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A model's corpus value minus the baseline's; below 0, the model is better.

    Attributes:
        value: The difference.
        interval: 95 % interval over paired documents (see `longlens.metrics.uncertainty`); None if the value depends on
            fewer than 2 documents or 20 tokens.
        significant: Whether the interval excludes 0; None if there is no interval.
        settled: The same, but false if there is no interval.
        documents_to_settle: Minimum number of documents of this kind with which the interval would exclude 0, if the
            difference stays the same: widths shrink with the square root of their number, and with Student's quantile.
            None if the difference is 0 or has no interval.
    """

    value: float
    interval: Interval | None
    significant: bool | None
    settled: bool
    documents_to_settle: int | None


@dataclass(frozen=True, kw_only=True)
class PairComparison:
    """A model against the baseline; a difference that does not exist is None.

    Attributes:
        model: Name of the model.
        baseline: Name of the baseline.
        log_ppl: Nats per scored token, in each model's own tokens.
        log_longppl: Nats per key token, in each model's own tokens; with different tokenizers these are different
            tokens.
        bits_per_character: Bits per character, comparable across tokenizers.
        key_bits_per_character: Bits of key tokens per character that they cover: what LongPPL measures, comparable
            across tokenizers.
        same_tokenizer: Whether the tokenizers' hashes are equal; None if one was not recorded.
    """

    model: str
    baseline: str
    log_ppl: Difference | None
    log_longppl: Difference | None
    bits_per_character: Difference | None
    key_bits_per_character: Difference | None
    same_tokenizer: bool | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; what does not exist is None."""
        values: dict[str, Any] = plain(self)
        return values


@dataclass(frozen=True, kw_only=True)
class Comparison(Tabular):
    """Models compared with a baseline. As a table: one row per pair, with columns such as ``log_ppl.value``.

    Attributes:
        baseline: Name of the first model.
        num_documents: Number of documents, the same for all models.
        results: Perplexities of all models, the baseline first.
        pairs: Every other model against the baseline.
        warnings: What has to be known before a number is relied on, a sentence each.
    """

    baseline: str
    num_documents: int
    results: Sequence[PerplexityResult]
    pairs: Sequence[PairComparison]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """The object that ``longlens compare --json`` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "baseline": self.baseline,
            "num_documents": self.num_documents,
            "results": [result.to_json() for result in self.results],
            "pairs": [pair.to_json() for pair in self.pairs],
            "warnings": list(self.warnings),
        }

    def _columns(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for field in fields(PairComparison):
            values = [getattr(pair, field.name) for pair in self.pairs]
            if field.name not in _MEASURES:
                columns[field.name] = values
                continue
            for part in fields(Difference):
                columns[f"{field.name}.{part.name}"] = [plain(getattr(value, part.name, None)) for value in values]
        return columns


def compare(
    runs: Sequence[Scores],
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
) -> Comparison:
    """Compares each model with the first one, on the same documents and key tokens.

    Args:
        runs: Scores of at least two models; the first is the baseline.
        evaluator_scores: Scores of the evaluator, on the same texts; with neither these nor keys, only `log_ppl` and
            `bits_per_character` exist.
        keys: Key tokens, instead of evaluator scores.
        alpha: Threshold of the long-short difference, nats; 2 by default.
        beta: Threshold of the long-context likelihood, nats; -2 by default.
        gamma: Maximum weight in `longppl_soft`; 5 by default.
        use_lcl: False selects by LSD only, without beta.
        context: K to use, if the evaluator has several.
        stride: d to use, if this K has several.
        answers: ``[start, end)`` in characters of the answers, by document id, instead of the stored ones.

    Raises:
        UserError: Fewer than two runs; runs of different documents or texts; errors of `perplexity`.

    Warns:
        LonglensWarning: Tokens are closer to a threshold than the error of the evaluator's dtype.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run to compare, expected at least two: the first is the baseline")
    rule = KeyRule(alpha=alpha, beta=beta, gamma=gamma, lcl=use_lcl, context=context, stride=stride)
    influence = choose_influence(evaluator_scores, keys, rule)
    corpora = [Corpus(run, influence, answers, name=name) for run, name in zip(runs, names_of(runs), strict=True)]
    check_same_ids(corpora)
    sums = [PerplexitySums(corpus) for corpus in corpora]
    for *rows, evaluated in read_once(runs[0].ids, [*runs, influence.evaluator]):
        for each, row in zip(sums, rows, strict=True):
            assert row is not None
            each.add(each.corpus.document(row, evaluated))
    sums[0].warn()
    return compare_results([each.result() for each in sums], runs)


def check_same_ids(corpora: Sequence[Corpus]) -> None:
    """Rejects models that were scored on different documents, before any scores are read.

    Raises:
        UserError: A document of the first model was not scored with another model, or vice versa.
    """
    baseline = corpora[0]
    ours = frozenset(baseline.scores.ids)
    for corpus in corpora[1:]:
        for id in sorted(ours.symmetric_difference(corpus.scores.ids)):
            has, lacks = (baseline, corpus) if id in ours else (corpus, baseline)
            raise UserError(
                f"document {id!r} was scored with {has.name} and not with {lacks.name}: score the same documents with "
                "all"
            )


def compare_results(results: Sequence[PerplexityResult], runs: Sequence[Scores]) -> Comparison:
    """Compares each result with the first one.

    Args:
        results: Perplexities of the same documents, the baseline first.
        runs: Scores of the same models, in the same order.

    Raises:
        UserError: A document has different texts.
    """
    baseline = results[0]
    for result in results[1:]:
        check_same_texts(baseline, result)
    hashes = [run.manifest["model"].get("tokenizer_sha256") for run in runs]
    pairs = [
        PairComparison(
            model=result.model,
            baseline=baseline.model,
            same_tokenizer=None if None in (hash, hashes[0]) else hash == hashes[0],
            **{
                name: difference(
                    column(result.documents, sums),
                    column(baseline.documents, sums),
                    unit,
                    min(getattr(result, counted) or 0, getattr(baseline, counted) or 0),
                )
                for name, (sums, unit, counted) in _MEASURES.items()
            },
        )
        for result, hash in zip(results[1:], hashes[1:], strict=True)
    ]
    notes = list(dict.fromkeys(note for result in results for note in result.warnings))
    notes += [
        f"{pair.model} and {pair.baseline} have different tokenizers, and PPL and LongPPL are per token of each: "
        "compare bits_per_character and key_bits_per_character"
        for pair in pairs
        if pair.same_tokenizer is False
    ]
    return Comparison(
        baseline=baseline.model,
        num_documents=len(baseline.documents),
        results=results,
        pairs=pairs,
        warnings=notes,
    )


# what is compared: the sums (nats and weight) of which it is a ratio, units per nat, and what counts its tokens
_MEASURES = {
    "log_ppl": ("scored", 1.0, "num_tokens"),
    "log_longppl": ("key", 1.0, "num_key_tokens"),
    "bits_per_character": ("characters", 1 / math.log(2), "num_tokens"),
    "key_bits_per_character": ("key_characters", 1 / math.log(2), "num_key_tokens"),
}


def difference(model: Doubles | None, baseline: Doubles | None, unit: float, num_tokens: int) -> Difference | None:
    """Difference of two models in nats or bits over the same documents: the baseline's log-probabilities minus the
    model's.

    Args:
        model: ``(n, 2)``, one row per document: log-probability and weight.
        baseline: The same for the baseline, ``(n, 2)``.
        unit: The unit of the result, in nats.
        num_tokens: Number of tokens on which the value depends, of the model that has fewer.
    """
    if model is None or baseline is None:
        return None
    totals = model.sum(axis=0), baseline.sum(axis=0)
    if any(weight == 0 or not math.isfinite(total) for total, weight in totals):
        return None
    own, base = (float(total / weight) for total, weight in totals)
    value = unit * (base - own)
    estimated = estimate(baseline, model) if num_tokens >= MIN_TOKENS else None
    both = None if estimated is None else estimated.interval()
    if estimated is None or both is None:
        return Difference(value=value, interval=None, significant=None, settled=False, documents_to_settle=None)
    low, high = (unit * end for end in both)
    excludes = low > 0 or high < 0
    return Difference(
        value=value,
        interval=(low, high),
        significant=excludes,
        settled=excludes,
        documents_to_settle=_documents_needed(estimated, len(model)) if value else None,
    )


def _documents_needed(estimated: Estimate, num_documents: int) -> int:
    """Minimum number of documents with which a nonzero value would be significant, if value and spread stay the same.

    The least m >= 2 with ``t(0.975, f m / n) * error * sqrt(n / m) < abs(value)``, where f + 1 is the number of
    documents of equal weight to which the n documents are equivalent: ``f m / n`` is ``(f + 1) m / n - 1``.
    """
    equal = (estimated.freedom + 1) / num_documents

    def excludes(number: int) -> bool:
        half = quantile(max(1.0, equal * number - 1)) * estimated.error * math.sqrt(num_documents / number)
        return half < abs(estimated.value)

    low, high = 1, 2
    while not excludes(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if excludes(middle) else (middle, high)
    return high


def check_same_texts(baseline: PerplexityResult, result: PerplexityResult) -> None:
    """Rejects results of the same documents whose texts differ.

    Raises:
        UserError: A document has different texts.
    """
    for one, other in zip(baseline.documents, result.documents, strict=True):
        if one.text_sha256 != other.text_sha256:
            raise UserError(
                f"document {one.id!r}: {baseline.model} and {result.model} were scored on different texts: score both "
                "with the same `max_length` and `truncate_with`"
            )
