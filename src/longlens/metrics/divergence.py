"""Divergence of a model's predictions from those of a reference, from the columns that `longlens diverge` stores.

Means over tokens of KL(p || q), KL(q || p), Jensen-Shannon divergence and agreement of the most likely token, where p
is the reference and q the model; on all tokens, on key tokens and on the rest, and by the number of preceding tokens.
Of a run whose cache was compressed once (``cache_protocol=prefill+tail``), on the tail only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longlens.errors import UserError
from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import Bools, Corpus, choose_influence
from longlens.metrics.uncertainty import Doubles, Interval, estimate
from longlens.scoring.scores import Scores, TokenScores, tail_tokens
from longlens.scoring.statistics import DIVERGENCE
from longlens.settings.options import KeyRule
from longlens.tables import Tabular, plain

SCHEMA_VERSION = 1
MEASURES = ("kl", "reverse_kl", "js", "top1_agreement")
"""Columns whose means are reported; in nats, and a share."""
SHARES = ("top1_agreement",)
GROUPS = ("all", "key", "rest")
FIRST_BRACKET = 256
"""Number of tokens of the first bracket of positions; each further bracket is as long as all before it."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over the tokens of all documents.

    Attributes:
        value: The mean.
        interval: 95 % interval over documents (`longlens.metrics.uncertainty`); None for fewer than 2 documents.
        num_tokens: Number of tokens.
    """

    value: float
    interval: Interval | None
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """Tokens that have ``start`` to ``stop - 1`` tokens before them, and the means on them.

    Attributes:
        start: Smallest number of tokens before.
        stop: One more than the largest number of tokens before.
        means: Means by measure.
    """

    start: int
    stop: int
    means: Mapping[str, Mean]


@dataclass(frozen=True, kw_only=True)
class DivergenceResult(Tabular):
    """A model compared with its reference. As a table: one row per measure and group of tokens.

    Attributes:
        model: Name of the model.
        reference: Name of the reference.
        cache: Policy of the model's cache; None if it keeps everything.
        evaluator: Name of the model that selected key tokens; None without key tokens.
        means: Means by measure (`MEASURES`) and group (`GROUPS`); None if a group has no tokens.
        by_position: The means by the number of tokens before.
        ppl: Perplexity of the model on these tokens.
        reference_ppl: Perplexity of the reference.
        num_documents: Number of documents.
        num_tokens: Number of tokens.
        num_key_tokens: Number of key tokens; None without key tokens.
        num_infinite: Number of tokens left out because their KL is infinite: one model finds a token impossible that
            the other does not.
        settings: ``alpha``, ``beta``, ``lcl``, ``context`` of the key tokens.
    """

    model: str
    reference: str
    cache: str | None
    evaluator: str | None
    means: Mapping[str, Mapping[str, Mean | None]]
    by_position: Sequence[Bracket]
    ppl: float
    reference_ppl: float
    num_documents: int
    num_tokens: int
    num_key_tokens: int | None
    num_infinite: int
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object that ``longlens diverge --json`` prints: values by measure and group, with their intervals."""
        groups = {name: {g: None if m is None else m.value for g, m in by.items()} for name, by in self.means.items()}
        intervals = {
            name: {g: None if m is None else m.interval for g, m in by.items()} for name, by in self.means.items()
        }
        brackets = [
            {
                "from": bracket.start,
                "to": bracket.stop - 1,
                **{name: mean.value for name, mean in bracket.means.items()},
                "num_tokens": bracket.means[MEASURES[0]].num_tokens,
            }
            for bracket in self.by_position
        ]
        rest = {name: getattr(self, name) for name in ("model", "reference", "cache", "evaluator", "ppl")}
        names = ("num_documents", "num_tokens", "num_key_tokens", "num_infinite", "settings")
        counts = {name: getattr(self, name) for name in names}
        found: dict[str, Any] = plain(
            {
                "schema_version": SCHEMA_VERSION,
                **rest,
                "reference_ppl": self.reference_ppl,
                **groups,
                "intervals": intervals,
                "by_position": brackets,
                **counts,
            }
        )
        return found

    def _columns(self) -> dict[str, list[Any]]:
        rows = [(name, group, mean) for name, by in self.means.items() for group, mean in by.items() if mean]
        return {
            "model": [self.model] * len(rows),
            "measure": [name for name, _, _ in rows],
            "tokens": [group for _, group, _ in rows],
            "value": [mean.value for _, _, mean in rows],
            "num_tokens": [mean.num_tokens for _, _, mean in rows],
        }


def divergence(
    scores: Scores,
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    rule: KeyRule | None = None,
) -> DivergenceResult:
    """Computes means of the stored columns, see the module docstring.

    Args:
        scores: Scores of the model, scored with the statistic ``divergence``.
        evaluator_scores: Scores of the model that selects key tokens, on the same texts.
        keys: Key tokens, instead of evaluator scores.
        rule: How key tokens are selected.

    Raises:
        UserError: The scores have no such columns; or evaluator scores or keys are rejected as by
            `longlens.perplexity`.
    """
    influence = choose_influence(evaluator_scores, keys, rule or KeyRule())
    corpus = Corpus(scores, influence)
    reference = check_diverged(scores)
    sums: dict[tuple[str, str], list[tuple[float, int]]] = {}
    places: dict[tuple[str, int], list[tuple[float, int]]] = {}
    logprobs, num_infinite, tail = np.zeros(2), 0, tail_tokens(scores)
    for document in corpus:
        row, is_key = document.row, document.is_key
        columns = columns_of(row)
        in_tail = np.arange(len(columns["kl"])) >= (0 if tail is None else len(columns["kl"]) - tail)
        there = is_measured(columns) & in_tail
        num_infinite += int(np.count_nonzero(in_tail & ~there & ~np.isnan(columns["kl"])))
        logprobs += [row.long_logprobs[there].sum(dtype=float), columns["reference_logprob"][there].sum(dtype=float)]
        groups: dict[str, Bools] = {"all": there}
        if is_key is not None:
            groups |= {"key": there & is_key, "rest": there & ~is_key}
        bracket = bracket_of(np.arange(len(there)))
        for name in MEASURES:
            for group, chosen in groups.items():
                sums.setdefault((name, group), []).append(_sum(columns[name], chosen))
            for number in np.unique(bracket[there]).tolist():
                places.setdefault((name, number), []).append(_sum(columns[name], there & (bracket == number)))
    means = {
        name: {group: mean_of(sums.get((name, group), []), is_share=name in SHARES) for group in GROUPS}
        for name in MEASURES
    }
    whole = means["kl"]["all"]
    if whole is None:
        raise UserError(f"no token of {corpus.name} has a divergence: score longer documents")
    rule_of_keys = {} if influence.keys is None else influence.keys.settings
    of_keys = means["kl"]["key"]
    return DivergenceResult(
        model=corpus.name,
        reference=str(reference["name"]),
        cache=scores.manifest["model"].get("cache"),
        evaluator=rule_of_keys.get("evaluator"),
        means=means,
        by_position=[
            Bracket(
                start=0 if number == 0 else FIRST_BRACKET << (number - 1),
                stop=FIRST_BRACKET << number,
                means={
                    name: mean
                    for name in MEASURES
                    if (mean := mean_of(places[name, number], is_share=name in SHARES)) is not None
                },
            )
            for number in sorted({number for _, number in places})
        ],
        ppl=float(np.exp(-logprobs[0] / whole.num_tokens)),
        reference_ppl=float(np.exp(-logprobs[1] / whole.num_tokens)),
        num_documents=len(scores),
        num_tokens=whole.num_tokens,
        num_key_tokens=None if influence.keys is None else 0 if of_keys is None else of_keys.num_tokens,
        num_infinite=num_infinite,
        settings={name: rule_of_keys.get(name) for name in ("alpha", "beta", "lcl", "context", "stride")},
    )


def check_diverged(scores: Scores) -> Mapping[str, Any]:
    """The manifest's record of the reference with which the scores were compared.

    Raises:
        UserError: The scores have no reference.
    """
    model = scores.manifest["model"]
    if DIVERGENCE.name not in scores.manifest["settings"].get("statistics", ()) or not model.get("reference"):
        raise UserError(
            f"the scores of {model['name']} have no reference: create them with longlens diverge REFERENCE "
            "MODEL DOCS -o RUN"
        )
    reference: Mapping[str, Any] = model["reference"]
    return reference


def columns_of(row: TokenScores) -> Mapping[str, Doubles]:
    """The columns of a document's divergence, float64.

    Raises:
        UserError: A column is missing.
    """
    lacking = [name for name in DIVERGENCE.columns if name not in row.columns]
    if lacking and len(row.token_ids) > 1:
        raise UserError(f"document {row.id!r} has no column {lacking[0]}: score it again into a new folder")
    empty = np.full(len(row.token_ids), np.nan)
    return {name: row.columns.get(name, empty).astype(np.float64) for name in DIVERGENCE.columns}


def is_measured(columns: Mapping[str, Doubles]) -> Bools:
    """Which tokens have a finite KL both ways."""
    found: Bools = np.isfinite(columns["kl"]) & np.isfinite(columns["reverse_kl"])
    return found


def bracket_of(before: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bracket of each token: 0 below `FIRST_BRACKET`, then one more for each doubling."""
    found: np.ndarray[Any, Any] = np.ceil(np.log2((np.asarray(before) + 1) / FIRST_BRACKET)).clip(0).astype(np.int64)
    return found


def mean_of(sums: Sequence[tuple[float, int]], *, is_share: bool = False) -> Mean | None:
    """The mean over tokens, from each document's sum and number of tokens; None without tokens.

    Args:
        sums: Sums of each document.
        is_share: Whether values are 0 or 1, so that the interval is clipped to [0, 1]; otherwise they are nonnegative
            nats, whose interval is computed on the log scale.
    """
    pairs = np.array(sums, dtype=np.float64).reshape(-1, 2)
    total = pairs[:, 1].sum()
    if not total:
        return None
    found = estimate(pairs)
    interval = None if found is None else found.interval(relative=not is_share)
    if interval is not None and is_share:
        interval = max(0.0, interval[0]), min(1.0, interval[1])
    return Mean(value=float(pairs[:, 0].sum() / total), interval=interval, num_tokens=int(total))


def _sum(values: Doubles, chosen: Bools) -> tuple[float, int]:
    return float(values[chosen].sum()), int(np.count_nonzero(chosen))
