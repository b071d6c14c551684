"""Cost of compression: how much of the gain from long context is left under a cache policy or fewer bits.

Over the key tokens t, with the short-context scores of the uncompressed model::

    retained gain = sum_t (logp_policy(t) - logp_short(t)) / sum_t (logp_full(t) - logp_short(t))

1 if nothing is lost, 0 if the result is the same as without long context, below 0 if it is worse than that. It can be
slightly above 1. With the uncompressed model scored at K_1 < … < K_m, a token's distance is the smallest K that yields
at least half of its gain::

    distance(t) = min {K : logp_K(t) - logp_{K_1}(t) >= (logp_full(t) - logp_{K_1}(t)) / 2}

and beyond K_m if none does; a token without gain has no distance. Tokens are key at K_1 unless another K is specified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from longlens.errors import UserError, shown
from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import Bools, Corpus, WeightedSum, choose_influence, read_once
from longlens.metrics.cost_runs import check_same, check_settings, fed_alike, warnings_of_runs, warnings_of_tokens
from longlens.metrics.divergence import columns_of, is_measured, mean_of
from longlens.metrics.gains import smallest_strides
from longlens.metrics.listed import Most, excerpt
from longlens.metrics.uncertainty import MIN_TOKENS, Doubles, Interval, estimate
from longlens.scoring.scores import Scores, ShortContext, TokenScores, identity_of, names_of, tail_tokens
from longlens.settings.options import KeyRule
from longlens.tables import Tabular, plain

SCHEMA_VERSION = 1
MAX_TOKENS = 500
"""Maximum number of key tokens that are listed, those that lost most."""


@dataclass(frozen=True, kw_only=True)
class DistanceBracket:
    """Key tokens whose distance is more than `above` and at most `up_to`.

    Attributes:
        above: Lower bound (exclusive) in tokens.
        up_to: Upper bound (inclusive) in tokens; None beyond the largest K.
        retained_gain: Retained gain on these tokens; None if they gain nothing.
        num_tokens: Number of key tokens.
        lost: Nats that the policy loses on them, over all documents.
    """

    above: int
    up_to: int | None
    retained_gain: float | None
    num_tokens: int
    lost: float

    @property
    def words(self) -> str:
        """The distance in tokens, in words: ``65 to 256``, ``more than 1,024``."""
        return f"more than {self.above:,}" if self.up_to is None else f"{self.above + 1:,} to {self.up_to:,}"


@dataclass(frozen=True, kw_only=True)
class DocumentCost:
    """What a policy lost in one document.

    Attributes:
        id: ID of the document.
        retained_gain: Retained gain of the document; None if its key tokens gain nothing.
        gain: Nats that the full model gains on its key tokens.
        lost: Nats of this gain that the policy loses.
        num_key_tokens: Number of key tokens that count.
        num_tokens: Number of tokens that count.
        ppl: Perplexity of the policy's run on the tokens that count; None without any.
        longppl: LongPPL, on the key tokens.
        kl: KL(full || policy) per token, nats; None as in `PolicyCost`.
    """

    id: str
    retained_gain: float | None
    gain: float
    lost: float
    num_key_tokens: int
    num_tokens: int
    ppl: float | None
    longppl: float | None
    kl: float | None


@dataclass(frozen=True, kw_only=True)
class LostToken:
    """A key token that a policy makes less likely than the full model does.

    Attributes:
        document: ID of its document.
        index: Index of the token in the document.
        before: The text before it; this and the next two are empty if the text was not stored.
        text: Text of the token.
        after: The text after it.
        full: Log-probability under the full model, nats.
        short: Log-probability under its short context, nats.
        policies: Log-probability under each policy, in order, nats.
        above: Its distance is more than this number of tokens; None if it has none.
        up_to: Its distance is at most this number of tokens; None beyond the largest K.
    """

    document: str
    index: int
    before: str
    text: str
    after: str
    full: float
    short: float
    policies: Sequence[float]
    above: int | None
    up_to: int | None


@dataclass(frozen=True, kw_only=True)
class PolicyCost:
    """The part of the full model's gain that one run lost.

    Attributes:
        name: Name of the run.
        policy: Policy of its cache; None if the cache keeps everything and weights or dtype differ.
        retained_gain: See the module docstring; None if the key tokens gain nothing.
        interval: 95 % interval over documents; None for fewer than 2 documents or `MIN_TOKENS` key tokens.
        bytes_per_token: Bytes of the cache at the end of a document, per token; None if not measured.
        ppl: Perplexity on the tokens that count.
        longppl: LongPPL, on the key tokens.
        kl: KL(full || policy) per token, nats; None unless the run was made by ``longlens diverge`` against the full
            model.
        key_kl: The same on key tokens.
        top1_agreement: Share of tokens with the same most likely token.
        key_top1_agreement: The same on key tokens.
        by_distance: Retained gain by distance; empty unless the full model was scored at several K.
        documents: Cost of each document.
    """

    name: str
    policy: str | None
    retained_gain: float | None
    interval: Interval | None
    bytes_per_token: float | None
    ppl: float | None
    longppl: float | None
    kl: float | None
    key_kl: float | None
    top1_agreement: float | None
    key_top1_agreement: float | None
    by_distance: Sequence[DistanceBracket]
    documents: Sequence[DocumentCost]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        brackets = [
            {"from": bracket.above, "to": bracket.up_to, "retained_gain": bracket.retained_gain}
            | {"num_tokens": bracket.num_tokens, "lost": bracket.lost}
            for bracket in self.by_distance
        ]
        content: dict[str, Any] = plain(self) | {"by_distance": plain(brackets)}
        return content

    @property
    def worst(self) -> DistanceBracket | None:
        """The distance bracket that lost most, in nats; None if none lost anything, or no distances are known."""
        losing = [bracket for bracket in self.by_distance if bracket.lost > 0]
        return max(losing, key=lambda bracket: bracket.lost, default=None)


@dataclass(frozen=True, kw_only=True)
class CostResult(Tabular):
    """Cost of several policies. As a table: one row per policy.

    Attributes:
        model: Name of the full model's run.
        evaluator: Name of the model that selected the key tokens.
        bytes_per_token: Bytes per token of the full model's cache; None if not measured.
        ppl: Perplexity of the full model on the tokens that count.
        longppl: LongPPL of the full model, on the key tokens.
        gain: Nats that a key token gains from its long context, on average.
        num_documents: Number of documents.
        num_tokens: Number of tokens that count: those with a short-context score; under ``prefill+tail``, those of the
            tail.
        num_key_tokens: Number of key tokens among them.
        policies: Costs of the runs, in order.
        tokens: The key tokens that lost most under one of them, at most `MAX_TOKENS`.
        settings: ``context``, ``stride``, ``contexts``, ``alpha``, ``beta``, ``lcl``, ``fed``.
        warnings: What has to be known before a number is relied on, a sentence each.
    """

    model: str
    evaluator: str | None
    bytes_per_token: float | None
    ppl: float | None
    longppl: float | None
    gain: float | None
    num_documents: int
    num_tokens: int
    num_key_tokens: int
    policies: Sequence[PolicyCost]
    tokens: Sequence[LostToken]
    settings: Mapping[str, Any]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """The object that ``longlens cost --json`` prints."""
        content = plain(replace(self, policies=())) | {"policies": [policy.to_json() for policy in self.policies]}
        return {"schema_version": SCHEMA_VERSION, **content}

    def _columns(self) -> dict[str, list[Any]]:
        names = ("name", "policy", "retained_gain", "interval", "bytes_per_token", "ppl", "longppl", "kl", "key_kl")
        more = ("top1_agreement", "key_top1_agreement")
        return {name: [plain(getattr(policy, name)) for policy in self.policies] for name in (*names, *more)}


def cost(
    full: Scores,
    policies: Sequence[Scores],
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    rule: KeyRule | None = None,
) -> CostResult:
    """Measures how much of a model's gain runs under cache policies, or in fewer bits, lost; see the module docstring.

    Args:
        full: Scores of the uncompressed model, with short contexts.
        policies: Scores of the same tokens; short contexts in them are not read.
        evaluator_scores: Scores of the model that selects the key tokens, on the same texts; may be `full`.
        keys: Key tokens, instead of evaluator scores.
        rule: How key tokens are selected; at the smallest K of `full` unless a context is specified.

    Raises:
        UserError: Neither evaluator scores nor keys are passed; `full` is compressed itself, or was not scored at their
            K; runs have other documents, texts, tokens or BOS, or were fed in different ways; no document is longer
            than what was fed at once, so that nothing was compressed; or there is no key token.
    """
    rule = rule or KeyRule()
    if evaluator_scores is None and keys is None:
        raise UserError(
            "the cost is measured on key tokens: pass `evaluator_scores` (may be those of the full model, which then "
            "selects the tokens on which it gains), or `keys`"
        )
    if not policies:
        raise UserError("the cost compares a full run with policies: pass at least one more run")
    check_settings(full, policies)
    short, rule = _short_context(full, evaluator_scores, rule)
    influence = replace(choose_influence(evaluator_scores, keys, rule), gamma=None)
    if influence.context is not None and influence.context != short.context:
        wanted = next((one for one in sorted(full.short_contexts) if one.context == influence.context), None)
        if wanted is None:
            have = ", ".join(f"K={one.context}" for one in full.short_contexts)
            raise UserError(
                f"the keys were selected at K={influence.context}, and {full.manifest['model']['name']} was scored at "
                f"{have}: score it at `context={influence.context}` too"
            )
        short = wanted
    fed = fed_alike(policies)
    corpus = Corpus(full, influence)
    shorts = [one for one in smallest_strides(full) if one.context >= short.context]
    sums = [_Sums(scores, shorts, identity_of(full).sha256) for scores in policies]
    base = _Sums(full, shorts, None)
    lost: Most[LostToken] = Most(MAX_TOKENS)
    chunk = None if fed is None else int(fed.removeprefix("prefill+"))
    tail = next((tail for scores in policies if (tail := tail_tokens(scores)) is not None), None)
    num_whole = num_impossible = 0
    for rows in read_once(full.ids, [full, influence.evaluator, *policies]):
        row, evaluated, *others = rows
        assert row is not None
        document = corpus.document(row, evaluated)
        assert document.is_key is not None
        if short not in row.short:
            raise UserError(
                f"document {shown(row.id)} of {corpus.name} has no scores at K={short.context}: resume its run"
            )
        for one, scores in zip(others, policies, strict=True):
            check_same(row, one, scores)
        paired = [one for one in others if one is not None]
        view = _View(row, short, shorts, document.is_key, tail, paired)
        num_whole += chunk is not None and len(row.token_ids) <= chunk
        num_impossible += view.num_impossible
        for at, one in zip([base, *sums], [row, *paired], strict=True):
            at.add(view, one)
        view.list_lost(lost, row, paired)
    if num_whole == len(full):
        raise UserError(
            f"no document of {corpus.name} is longer than the {chunk:,} tokens that were fed at once, so that nothing "
            f"was compressed: use longer documents, or a smaller `cache_chunk={max(1, (chunk or 0) // 4)}`"
        )
    if not base.num_key_tokens:
        tails = "" if tail is None else f", or a longer tail (`cache_chunk={4 * tail + 4}`)"
        raise UserError(
            f"no key token of {corpus.name} can be used: use longer documents{',' if tails else ' or'} a lower "
            f"`alpha`{tails}"
        )
    names = names_of([full, *policies])
    settings = influence.keys.settings if influence.keys is not None else {}
    return CostResult(
        model=names[0],
        evaluator=settings.get("evaluator"),
        bytes_per_token=base.bytes_per_token,
        ppl=base.all.ppl,
        longppl=base.key.ppl,
        gain=base.gain,
        num_documents=len(full),
        num_tokens=int(base.all.weight),
        num_key_tokens=base.num_key_tokens,
        policies=[at.result(name) for at, name in zip(sums, names[1:], strict=True)],
        tokens=lost.sorted(),
        settings={
            "context": short.context,
            "stride": short.stride,
            "contexts": [one.context for one in shorts],
            "fed": fed,
            **{name: settings.get(name) for name in ("alpha", "beta", "lcl")},
        },
        warnings=[
            *warnings_of_runs(full, policies, names),
            *_warnings(base, sums, names, shorts),
            *warnings_of_tokens(num_whole, len(full), num_impossible, chunk),
        ],
    )


class _View:
    """A document under the full model: the tokens that count, their gain, and their distance."""

    def __init__(
        self,
        row: TokenScores,
        short: ShortContext,
        shorts: Sequence[ShortContext],
        is_key: Bools,
        tail: int | None,
        others: Sequence[TokenScores],
    ) -> None:
        n = len(row.token_ids)
        self.short = row.short[short].astype(np.float64)
        self.full = row.long_logprobs.astype(np.float64)
        every = np.stack([self.short, self.full, *(one.long_logprobs for one in others)])
        scored: Bools = ~np.isnan(every).any(axis=0) & (np.arange(n) >= (0 if tail is None else max(0, n - tail)))
        self.counts: Bools = scored & np.isfinite(every).all(axis=0)
        self.num_impossible = int(np.count_nonzero(scored & ~self.counts))
        self.is_key = self.counts & is_key
        self.gain = float((self.full - self.short)[self.is_key].sum())
        self.distance = self._distances(row, shorts)
        self.id, self._edges = row.id, [short.context for short in shorts]

    def _distances(self, row: TokenScores, shorts: Sequence[ShortContext]) -> np.ndarray[Any, Any] | None:
        """Index of the first K with half of the gain, ``len(shorts)`` if none has it, -1 without gain."""
        if len(shorts) < 2:
            return None
        gains = np.stack([row.short[one].astype(np.float64) for one in shorts]) - self.short
        total = self.full - self.short
        # A token at a position below the larger K sees all of its context, so its score is the long one.
        gains = np.where(np.isnan(gains), total, gains)
        reached = gains >= total / 2
        first = np.where(reached.any(axis=0), reached.argmax(axis=0), len(shorts))
        return np.where(total > 0, first, -1)

    def list_lost(self, lost: Most[LostToken], row: TokenScores, others: Sequence[TokenScores]) -> None:
        """Lists the key tokens that lose most.

        Args:
            lost: The list to add to; sorted by the largest loss under a policy.
            row: Scores under the full model.
            others: Scores under the policies.
        """
        indices = np.flatnonzero(self.is_key)
        under = np.stack([one.long_logprobs[indices].astype(np.float64) for one in others])
        losses = self.full[indices] - under.min(axis=0)
        for number in np.argsort(-losses, kind="stable").tolist():
            value, index = float(losses[number]), int(indices[number])
            if value <= 0 or not lost.takes(value):
                break
            at = -1 if self.distance is None else int(self.distance[index])
            token = LostToken(
                document=self.id,
                index=index,
                **excerpt(row.text, *row.char_spans[index].tolist()),
                full=float(self.full[index]),
                short=float(self.short[index]),
                policies=under[:, number].tolist(),
                above=self._edges[at - 1] if at > 0 else None,
                up_to=self._edges[at] if 0 < at < len(self._edges) else None,
            )
            lost.add(value, token)


class _Sums:
    """Sums of one run over documents."""

    def __init__(self, scores: Scores, shorts: Sequence[ShortContext], full: str | None) -> None:
        model = scores.manifest["model"]
        self.policy: str | None = model.get("cache")
        reference = (model.get("reference") or {}).get("sha256")
        self.has_divergence = full is not None and reference == full
        self.other_reference = full is not None and reference not in (None, full)
        self._shorts = shorts
        self._gains: list[tuple[float, float]] = []
        self.documents: list[DocumentCost] = []
        self._columns: dict[tuple[str, bool], list[tuple[float, int]]] = {}
        self._brackets: dict[int, tuple[float, float, int]] = {}
        self._bytes: list[tuple[float, int]] = []
        self.all, self.key = WeightedSum(0.0, 0.0), WeightedSum(0.0, 0.0)
        self._full_gain, self.num_infinite = 0.0, 0

    def add(self, view: _View, row: TokenScores) -> None:
        logprobs = row.long_logprobs.astype(np.float64)
        kept = (logprobs - view.short)[view.is_key]
        self._gains.append((float(kept.sum()), view.gain))
        self._full_gain += view.gain
        every, on_keys = (_sum_of(logprobs[chosen]) for chosen in (view.counts, view.is_key))
        self.all, self.key = _plus(self.all, every), _plus(self.key, on_keys)
        kl = None
        if self.has_divergence:
            columns = columns_of(row)
            there = is_measured(columns)
            self.num_infinite += int(np.count_nonzero(view.counts & ~there & ~np.isnan(columns["kl"])))
            for name in ("kl", "top1_agreement"):
                for of_key, chosen in ((False, view.counts), (True, view.is_key)):
                    values = columns[name][chosen & there]
                    self._columns.setdefault((name, of_key), []).append((float(values.sum()), len(values)))
            kl = mean_of(self._columns["kl", False][-1:])
        self.documents.append(
            DocumentCost(
                id=view.id,
                retained_gain=float(kept.sum()) / view.gain if view.gain > 0 else None,
                gain=view.gain,
                lost=view.gain - float(kept.sum()),
                num_key_tokens=int(on_keys.weight),
                num_tokens=int(every.weight),
                ppl=every.ppl,
                longppl=on_keys.ppl,
                kl=None if kl is None else kl.value,
            )
        )
        if "cache_bytes" in row.columns and len(row.token_ids):
            self._bytes.append((float(row.columns["cache_bytes"][-1]), len(row.token_ids)))
        if view.distance is not None:
            for number in np.unique(view.distance[view.is_key]).tolist():
                chosen = view.is_key & (view.distance == number)
                have, gain, tokens = self._brackets.get(number, (0.0, 0.0, 0))
                self._brackets[number] = (
                    have + float((logprobs - view.short)[chosen].sum()),
                    gain + float((view.full - view.short)[chosen].sum()),
                    tokens + int(np.count_nonzero(chosen)),
                )

    @property
    def num_key_tokens(self) -> int:
        return int(self.key.weight)

    @property
    def loses_somewhere(self) -> bool:
        """Whether the full model loses by its long context on the key tokens of a document."""
        return any(gain < 0 for _, gain in self._gains)

    @property
    def gain(self) -> float | None:
        return self._full_gain / self.key.weight if self.key.weight else None

    @property
    def bytes_per_token(self) -> float | None:
        tokens = sum(n for _, n in self._bytes)
        return sum(held for held, _ in self._bytes) / tokens if tokens else None

    def result(self, name: str) -> PolicyCost:
        gains: Doubles = np.array(self._gains)
        total = float(gains[:, 1].sum())
        is_sure = len(gains) > 1 and self.key.weight >= MIN_TOKENS and (gains[:, 1] >= 0).all()
        found = estimate(gains) if is_sure else None

        def mean(column: str, of_key: bool) -> float | None:
            value = mean_of(self._columns.get((column, of_key), []))
            return None if value is None else value.value

        return PolicyCost(
            name=name,
            policy=self.policy,
            retained_gain=float(gains[:, 0].sum()) / total if total > 0 else None,
            interval=None if found is None else found.interval(),
            bytes_per_token=self.bytes_per_token,
            ppl=self.all.ppl,
            longppl=self.key.ppl,
            kl=mean("kl", False),
            key_kl=mean("kl", True),
            top1_agreement=mean("top1_agreement", False),
            key_top1_agreement=mean("top1_agreement", True),
            by_distance=self._by_distance(),
            documents=self.documents,
        )

    def _by_distance(self) -> list[DistanceBracket]:
        edges: list[int | None] = [*(short.context for short in self._shorts), None]
        found = []
        for number, (above, up_to) in enumerate(pairwise(edges), start=1):
            have, gain, tokens = self._brackets.get(number, (0.0, 0.0, 0))
            if tokens:
                ratio = have / gain if gain > 0 else None
                found.append(
                    DistanceBracket(
                        above=above or 0, up_to=up_to, retained_gain=ratio, num_tokens=tokens, lost=gain - have
                    )
                )
        return found


def _sum_of(logprobs: Doubles) -> WeightedSum:
    return WeightedSum(float(logprobs.sum()), float(len(logprobs)))


def _plus(total: WeightedSum, more: WeightedSum) -> WeightedSum:
    return WeightedSum(total.logprob + more.logprob, total.weight + more.weight)


def _short_context(full: Scores, evaluator: Scores | None, rule: KeyRule) -> tuple[ShortContext, KeyRule]:
    """The short context of the gain, and the rule with its K: the specified one, else the smallest that both have."""
    rising = smallest_strides(full)
    name = full.manifest["model"]["name"]
    if not rising:
        raise UserError(
            f"{name} was scored without short contexts, from which the gain is computed: run longlens score again with "
            "the same output, with `context=64,256,1024` for example"
        )
    if rule.context is not None:
        wanted = [short for short in full.short_contexts if short.context == rule.context]
        wanted = [short for short in wanted if rule.stride in (None, short.stride)]
        if not wanted:
            have = ", ".join(f"K={short.context}" for short in rising)
            raise UserError(f"{name} was scored at {have}, and not at K={rule.context}: use one of these")
        return min(wanted), rule
    if evaluator is None:
        return rising[0], rule
    known = {short.context for short in evaluator.short_contexts}
    both = [short for short in rising if short.context in known]
    if not both:
        contexts = [
            ", ".join(f"K={one.context}" for one in smallest_strides(scores)) or "none" for scores in (full, evaluator)
        ]
        have = " and ".join(
            f"{scores.manifest['model']['name']} at {at}"
            for scores, at in zip((full, evaluator), contexts, strict=True)
        )
        raise UserError(
            f"the full model and the evaluator have no short context in common ({have}): score both at one K"
        )
    stride = min(short.stride for short in evaluator.short_contexts if short.context == both[0].context)
    return both[0], replace(rule, context=both[0].context, stride=stride)


def _warnings(base: _Sums, sums: Sequence[_Sums], names: Sequence[str], shorts: Sequence[ShortContext]) -> list[str]:
    notes = []
    for at, name in zip(sums, names[1:], strict=True):
        if at.other_reference:
            notes.append(f"{name} was compared with another reference than {names[0]}, so its KL is left out")
        if at.num_infinite:
            notes.append(f"{at.num_infinite} tokens of {name} have an infinite KL and are left out of its mean")
    if base.num_key_tokens < MIN_TOKENS:
        notes.append(
            f"{base.num_key_tokens} key tokens are too few for an interval (at least {MIN_TOKENS}): use more documents"
        )
    elif len(base.documents) < 2:
        notes.append("one document gives no interval, which is over documents: use more documents")
    elif base.loses_somewhere:
        notes.append(
            "there is no interval, since the key tokens of some documents gain nothing from long context: select the "
            "key tokens with the full model, or use more text of each document"
        )
    if len(shorts) < 2:
        notes.append(
            f"{names[0]} was not scored at a K above {shorts[0].context}, so that there are no distances: score it at "
            "several, such as `context=64,256,1024`"
        )
    return notes
