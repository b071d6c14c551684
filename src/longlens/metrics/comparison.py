"""Whether one model is better than another: paired differences over the same documents, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longlens.errors import UserError
from longlens.keytokens.influence import ALPHA, BETA, GAMMA
from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import Corpus, choose_influence, read_corpus
from longlens.metrics.documents import DocumentStatistics, column
from longlens.metrics.perplexity import PerplexityResult, character_column, key_character_column, summarize
from longlens.metrics.uncertainty import RESAMPLES, Doubles, Interval, bootstrap_interval
from longlens.scoring.scores import Scores, names_of

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A model's corpus value minus the baseline's; below 0 the model is the better one.

    Attributes:
        value: The difference.
        interval: 95 % interval of it, paired bootstrap over documents; None where it does not exist.
        settled: Whether the interval excludes 0.
        documents_to_settle: With how many documents of this kind an interval would just exclude 0, if the difference
            stays: ``ceil(n * (half_width / abs(value)) ** 2)``, as widths shrink with the root of their number; 2 at
            least. None where the difference is 0 or has no interval.
    """

    value: float
    interval: Interval | None
    settled: bool
    documents_to_settle: int | None


@dataclass(frozen=True, kw_only=True)
class PairComparison:
    """A model against the baseline; a difference that does not exist is None.

    Attributes:
        model: Name of the model.
        baseline: Name of the baseline.
        log_ppl: Nats per scored token of each model's own.
        log_longppl: Nats per key token of each model's own; with different tokenizers the two are of different tokens.
        bits_per_character: Comparable across tokenizers.
        key_bits_per_character: Of key tokens, per character that they cover: what LongPPL asks, comparable across
            tokenizers.
        same_tokenizer: Whether the hashes are equal; None where one was not recorded.
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
        return _listed(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` finds.

    Attributes:
        baseline: Name of the first model.
        num_documents: Documents, the same for all.
        results: The perplexities of every model, the baseline first.
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


def compare(
    runs: Sequence[Scores],
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
    use_lcl: bool = True,
    context: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Each model against the first one, on the same documents and the same key runs.

    Args:
        runs: Scores of two or more models; the first is the baseline.
        evaluator_scores: As for `perplexity`, and so are all that follow; with neither these nor keys, only `log_ppl`
            and `bits_per_character` exist.
        keys: See there.
        alpha: See there.
        beta: See there.
        gamma: See there.
        use_lcl: See there.
        context: See there.
        stride: See there.
        seed: Of the intervals.
        resamples: Of the intervals.

    Raises:
        UserError: Fewer than two runs; runs of different documents or texts; what `perplexity` refuses.

    Warns:
        LonglensWarning: As `perplexity`, once.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run to compare, expected two or more: the first is the baseline")
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
    corpora = [read_corpus(run, influence, None, name=name) for run, name in zip(runs, names_of(runs), strict=True)]
    for corpus in corpora[1:]:
        _check_same_documents(corpora[0], corpus)
    corpora[0].warn()
    hashes = [run.manifest["model"].get("tokenizer_sha256") for run in runs]
    pairs = [
        PairComparison(
            model=corpus.model,
            baseline=corpora[0].model,
            same_tokenizer=None if None in (hash, hashes[0]) else hash == hashes[0],
            **{
                name: _difference(of(corpus.documents), of(corpora[0].documents), unit, seed, resamples)
                for name, (of, unit) in _MEASURES.items()
            },
        )
        for corpus, hash in zip(corpora[1:], hashes[1:], strict=True)
    ]
    notes = list(dict.fromkeys(note for corpus in corpora for note in corpus.notes))
    notes += [
        f"{pair.model} and {pair.baseline} have different tokenizers, and PPL and LongPPL are per token of each: "
        "compare bits_per_character and key_bits_per_character"
        for pair in pairs
        if pair.same_tokenizer is False
    ]
    return Comparison(
        baseline=corpora[0].model,
        num_documents=len(corpora[0].documents),
        results=[summarize(corpus, seed=seed, resamples=resamples) for corpus in corpora],
        pairs=pairs,
        warnings=notes,
    )


# what is compared: which sums (nats and weight) it is a ratio of, and how many of its unit a nat is
_MEASURES: dict[str, tuple[Callable[[Sequence[DocumentStatistics]], Doubles | None], float]] = {
    "log_ppl": (lambda documents: column(d.scored for d in documents), 1.0),
    "log_longppl": (lambda documents: column(d.key for d in documents), 1.0),
    "bits_per_character": (character_column, 1 / math.log(2)),
    "key_bits_per_character": (key_character_column, 1 / math.log(2)),
}


def _difference(
    model: Doubles | None, baseline: Doubles | None, unit: float, seed: int, resamples: int
) -> Difference | None:
    if model is None or baseline is None:
        return None
    totals = model.sum(axis=0), baseline.sum(axis=0)
    if any(weight == 0 or not math.isfinite(total) for total, weight in totals):
        return None
    own, base = (float(total / weight) for total, weight in totals)
    value = unit * (base - own)
    interval = bootstrap_interval(
        lambda own, base: unit * (base - own), model, baseline, seed=seed, resamples=resamples
    )
    if interval is None or value == 0:
        return Difference(value=value, interval=interval, settled=False, documents_to_settle=None)
    low, high = interval
    needed = math.ceil(len(model) * ((high - low) / 2 / abs(value)) ** 2)
    return Difference(value=value, interval=interval, settled=low > 0 or high < 0, documents_to_settle=max(2, needed))


def _check_same_documents(baseline: Corpus, corpus: Corpus) -> None:
    hashes = ({d.id: d.text_sha256 for d in c.documents} for c in (baseline, corpus))
    ours, theirs = hashes
    for id in sorted(ours.keys() ^ theirs.keys()):
        has, lacks = (baseline, corpus) if id in ours else (corpus, baseline)
        raise UserError(
            f"document {id!r} was scored with {has.model} and not with {lacks.model}: score the same documents with all"
        )
    for id, hash in ours.items():
        if theirs[id] != hash:
            raise UserError(
                f"document {id!r}: {baseline.model} and {corpus.model} were scored on different texts: score both with "
                "the same --max-length and --truncate-with"
            )


def _listed(pair: dict[str, Any]) -> dict[str, Any]:
    for value in pair.values():
        if isinstance(value, dict) and value["interval"] is not None:
            value["interval"] = list(value["interval"])
    return pair
