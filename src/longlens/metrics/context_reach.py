"""Context reach: up to how many tokens of context a model still gains, from scores under several short contexts.

With scores at K_1 < K_2 < … < K_m, and S the tokens that have K_m tokens before them at least::

    G(K) = mean over S of logp(token | K tokens) - logp(token | K_1 tokens)              nats, G(K_1) = 0
    G̃    = the isotonic fit of G(K_1), …, G(K_m), linear in log K between them           so max G̃ = G̃(K_m)
    R    = the smallest K with G̃(K) >= 0.9 max G̃                                         tokens

S is the same for every K, so that G compares contexts and no tokens. A token "at K" has K to K + d - 1 tokens before
it, hence d <= K/2. A weak model can have a long R and gain little: R is always shown beside max G, and beside the gain
of a reference model.

Prior work: Khandelwal et al. 2018, "Sharp Nearby, Fuzzy Far Away" (the loss under a cut context, and from where on it
no longer falls); Sun et al. 2021, "Do Long-Range Language Models Actually Use Long-Range Context?" (mean gains hide
that few tokens gain: hence a curve of the key tokens); O'Connor and Andreas 2021, "What Context Features Can
Transformer Language Models Use?", and Fernandes et al. 2021, "Measuring and Increasing Context Usage in Context-Aware
Machine Translation" (the gain as information in nats, between two amounts of context); Cífka and Liutkus 2023,
"Black-box language model explanation by context length probing" (every token under every context length; code
cifkao/context-probing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.selection import KeySource, near_threshold_message, warn_near_threshold
from longlens.metrics.corpus import AnswerSpans, Corpus, Influence, choose_influence, is_evaluator
from longlens.metrics.gains import DocumentGains, GainSums, check_reference, rising_contexts
from longlens.metrics.uncertainty import (
    MIN_TOKENS,
    RESAMPLES,
    Doubles,
    Interval,
    drawn_values,
    linearised,
    percentile_interval,
    quantile,
    scaled_deviations,
)
from longlens.scoring.scores import Scores
from longlens.settings.options import KeyRule
from longlens.tables import Tabular, plain

SCHEMA_VERSION = 1
REACHED = 0.9
MIN_DOCUMENTS = 5


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A step in which more context made the raw gain smaller, which the isotonic fit hides.

    Attributes:
        from_context: K_j.
        to_context: K_{j+1}.
        nats: ``G(K_j) - G(K_{j+1})``, above 0.
        interval: 95 % interval of it; None where the curve has no intervals.
    """

    from_context: int
    to_context: int
    nats: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The gain of one model on one set S of tokens. Intervals are 95 %, over documents (`metrics.uncertainty`).

    Attributes:
        contexts: K_1, …, K_m.
        gains: G at each of them, nats per token; raw.
        gain_intervals: Of each; None with fewer than 5 documents or 20 tokens in S, as all intervals.
        fit: G̃ at each of them.
        whole_gain: The same under the whole context of each token, nats per token.
        max_gain: max G̃, which is its last value. A maximum of what is noise is above 0 more often than not.
        max_gain_interval: Of `max_gain`.
        reach: R, tokens; None where `max_gain` is not above 0, or its interval reaches down to 0.
        reach_interval: Of `reach`, the fit and R being computed anew from gains that are drawn from their t
            distribution; None where `reach` is. So is `max_gain_interval`.
        censored: Whether R lies in the last step, so that a larger K could move it: R is a lower bound.
        reach_interval_censored: Whether the upper end of the interval does.
        drops: The steps in which G fell.
        num_tokens: Tokens in S.
        num_characters: Characters that they cover.
        num_documents: Documents that have tokens in S.
        reference_share: ``max_gain * num_tokens / num_characters``, nats per character, over that of the reference on
            its own tokens; None without reference, or where its gain is not above 0, or cannot be told from it.
    """

    contexts: tuple[int, ...]
    gains: tuple[float, ...]
    gain_intervals: tuple[Interval, ...] | None
    fit: tuple[float, ...]
    whole_gain: float
    max_gain: float
    max_gain_interval: Interval | None
    reach: float | None
    reach_interval: Interval | None
    censored: bool
    reach_interval_censored: bool
    drops: tuple[Drop, ...]
    num_tokens: int
    num_characters: int
    num_documents: int
    reference_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReachResult(Tabular):
    """How far back a model's context reaches. As a table: a row a curve and K.

    Attributes:
        model: Name of the model.
        evaluator: Name of the evaluator; None where no key tokens were selected.
        reference: Name of the reference; None without one.
        all: The curve of all tokens with K_m tokens before them.
        keys: The curve of those that are key; None without any.
        answers: The curve of those that share a character with an answer; None without any.
        num_short_documents: Documents of K_m tokens or fewer, which contribute nothing.
        settings: ``contexts``, ``strides``; ``alpha``, ``beta``, ``lcl`` of the key tokens; ``bos``, ``dtype`` of the
            model.
        warnings: What has to be known before a number is relied on, a sentence each.
    """

    model: str
    evaluator: str | None
    reference: str | None
    all: Curve
    keys: Curve | None
    answers: Curve | None
    num_short_documents: int
    settings: Mapping[str, Any]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """The object that ``longlens reach --json`` prints; what does not exist is None, nothing is NaN."""
        return {"schema_version": SCHEMA_VERSION, **plain(self)}

    def _columns(self) -> dict[str, list[Any]]:
        names = ("contexts", "gains", "gain_intervals", "fit")
        columns: dict[str, list[Any]] = {name: [] for name in ("model", "tokens", *names)}
        for tokens in ("all", "keys", "answers"):
            curve = getattr(self, tokens)
            if curve is not None:
                rows = len(curve.contexts)
                columns["model"] += [self.model] * rows
                columns["tokens"] += [tokens] * rows
                for name in names:
                    columns[name] += plain(getattr(curve, name)) or [None] * rows
        return columns


def reach(
    model_scores: Scores,
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    use_lcl: bool | None = None,
    answers: AnswerSpans | None = None,
    reference_scores: Scores | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ReachResult:
    """How far back a model's context reaches: its gain at every K it was scored at, and R; see the module.

    Scoring costs about ``n (1 + K/d)`` tokens of model input a document of n tokens and a K. Of several strides of one
    K the smallest is taken.

    Args:
        model_scores: Of the model, at three K or more with d <= K/2.
        evaluator_scores: Of another model, on the same texts and at K_1 too: it selects the key tokens there.
        keys: Key tokens instead, selected before.
        alpha: Threshold of the long-short difference, nats; 2 by default.
        beta: Threshold of the long-context likelihood, nats; -2 by default.
        use_lcl: False leaves the second criterion out, and with it beta.
        answers: ``[start, end)`` in characters of the answers, by document id, in place of the stored ones.
        reference_scores: Of a model to measure the gain by, on the same texts and at the same K.
        seed: Of the draws that give the intervals of the largest gain and of R.
        resamples: How many draws.

    Raises:
        UserError: Fewer than three K, or d > K/2; evaluator scores and keys at once, or settings that keys have
            already or that select nothing; a document that is missing there, or is another text; a reference with other
            documents or K; no document is longer than K_m.

    Warns:
        LonglensWarning: Tokens stand nearer to a threshold than the error of the evaluator's dtype.
    """
    if resamples < 1:
        raise UserError(f"`resamples` is {resamples}, expected 1 or more")
    influence, own = reach_influence(model_scores, evaluator_scores, keys, KeyRule(alpha=alpha, beta=beta, lcl=use_lcl))
    model = _read_gains(Corpus(model_scores, influence, answers))
    reference = None
    if reference_scores is not None:
        selects = is_evaluator(reference_scores, influence.evaluator, influence.keys)
        reference = _read_gains(Corpus(reference_scores, NO_INFLUENCE if selects else influence, answers))
    if influence.keys is not None:
        warn_near_threshold(model.num_near, model.num_key_tokens, influence.keys.settings["dtype"])
    return reach_result(model, reference, own=own, seed=seed, resamples=resamples)


def _read_gains(corpus: Corpus) -> GainSums:
    sums = GainSums(corpus)
    for row, evaluated in corpus.rows():
        sums.add(row, evaluated)
    return sums


NO_INFLUENCE = Influence(keys=None, evaluator=None, gamma=None, context=None, stride=None)


def reach_influence(
    scores: Scores, evaluator_scores: Scores | None, keys: KeySource | None, rule: KeyRule
) -> tuple[Influence, bool]:
    """What selects key tokens at K_1, without soft weights; and whether that is the model itself, so that nothing does.

    Raises:
        UserError: What `reach` refuses before it reads anything.
    """
    smallest = rising_contexts(scores)[0].context
    if None in (evaluator_scores, keys) and is_evaluator(scores, evaluator_scores, keys):
        choose_influence(evaluator_scores, keys, rule)  # for what it refuses
        return NO_INFLUENCE, True
    if evaluator_scores is not None and smallest not in {short.context for short in evaluator_scores.short_contexts}:
        evaluator, model = (each.manifest["model"]["name"] for each in (evaluator_scores, scores))
        have = ", ".join(f"K={short.context}" for short in evaluator_scores.short_contexts) or "no short context"
        raise UserError(
            f"the evaluator {evaluator} was scored at {have}, and not at K={smallest}, the smallest K of {model}, "
            f"where the key tokens are selected: score it with `context={smallest}`, `stride={max(1, smallest // 2)}`"
        )
    if evaluator_scores is not None:
        rule = replace(rule, context=smallest)
    return replace(choose_influence(evaluator_scores, keys, rule), gamma=None), False


def reach_result(
    model: GainSums, reference: GainSums | None, *, own: bool, seed: int = 0, resamples: int = RESAMPLES
) -> ReachResult:
    """The curves of what was added.

    Args:
        model: Of the model.
        reference: Of the model that the gain is measured by.
        own: Whether the model is its own evaluator.
        seed: Of the draws.
        resamples: How many draws.

    Raises:
        UserError: The reference has other documents or K; no document is longer than K_m.
    """
    if reference is not None:
        check_reference(model, reference)
    contexts, influence = model.contexts, model.corpus.influence
    everything, of_keys, of_answers = (
        _curve(contexts, model.of(tokens), [] if reference is None else reference.of(tokens), seed, resamples)
        for tokens in ("all", "keys", "answers")
    )
    if everything is None:
        raise UserError(
            f"no token of {model.name} has {contexts[-1]} tokens before it and a score at every K: score longer "
            "documents, or with smaller contexts, such as `context=64,128,256` and `stride=32,64,128`"
        )
    rule = {} if influence.keys is None else influence.keys.settings
    recorded = model.corpus.scores.manifest["settings"]
    return ReachResult(
        model=model.name,
        evaluator=rule.get("evaluator"),
        reference=None if reference is None else reference.name,
        all=everything,
        keys=of_keys,
        answers=of_answers,
        num_short_documents=model.num_short,
        settings={
            "contexts": contexts,
            "strides": tuple(short.stride for short in model.shorts),
            **{name: rule.get(name) for name in ("alpha", "beta", "lcl")},
            **{name: recorded.get(name) for name in ("bos", "dtype")},
        },
        warnings=[
            *_notes_on_documents(model),
            *_notes_on_keys(model, own),
            *_notes_on_curves(model, everything, of_keys, of_answers),
            *([] if reference is None else _notes_on_reference(model, reference)),
        ],
    )


def effective_reach(contexts: Sequence[int], fit: npt.ArrayLike) -> float | None:
    """R, the smallest K with ``G̃(K) >= 0.9 * G̃(K_m)``, G̃ being linear in log K between the contexts.

    Args:
        contexts: ``(m,)`` K, rising.
        fit: ``(m,)`` G̃ at each, nats; not falling, and the first not above 0.

    Returns:
        Tokens; None where the last value is not above 0.
    """
    values = np.asarray(fit, dtype=np.float64)
    if values[-1] <= 0:
        return None
    wanted = REACHED * values[-1]
    step = int(np.searchsorted(values, wanted))  # the first K that reaches it; not K_1, whose value is not above 0
    low, high = contexts[step - 1], contexts[step]
    part = (wanted - values[step - 1]) / (values[step] - values[step - 1])
    return float(min(low * (high / low) ** part, high))


def _isotonic(gains: Doubles) -> Doubles:
    from scipy.optimize import isotonic_regression  # slow to import, and not every command needs it

    fit: Doubles = isotonic_regression(gains).x
    return fit


def _curve(
    contexts: tuple[int, ...],
    sums: Sequence[DocumentGains],
    reference: Sequence[DocumentGains],
    seed: int,
    resamples: int,
) -> Curve | None:
    """The curve of these tokens; None where there are none."""
    num_tokens = sum(document.num_tokens for document in sums)
    num_characters = sum(document.num_characters for document in sums)
    if not num_tokens:
        return None
    columns = np.array([[*document.gains, document.num_tokens] for document in sums], dtype=np.float64)
    *gains, whole_gain = columns[:, :-1].sum(axis=0) / num_tokens
    fit = _isotonic(np.array(gains))
    reached = effective_reach(contexts, fit)
    num_documents = int(np.count_nonzero(columns[:, -1]))
    intervals = None
    if num_documents >= MIN_DOCUMENTS and num_tokens >= MIN_TOKENS:
        intervals = curve_intervals(contexts, columns, seed, resamples)
        if intervals is not None and intervals.max_gain[0] <= 0:
            reached = None
    reach_interval = intervals.reach if intervals and reached is not None else None
    own, others = _gain_per_character(sums), _gain_per_character(reference)
    share = None if own is None or others is None or others <= 0 else own / others
    if share is not None and not _gains_surely(contexts, reference, seed, resamples):
        share = None
    return Curve(
        contexts=contexts,
        gains=tuple(float(gain) for gain in gains),
        gain_intervals=intervals and intervals.gains,
        fit=tuple(float(value) for value in fit),
        whole_gain=float(whole_gain),
        max_gain=float(fit[-1]),
        max_gain_interval=intervals and intervals.max_gain,
        reach=reached,
        reach_interval=reach_interval,
        censored=reached is not None and reached > contexts[-2],
        reach_interval_censored=reach_interval is not None and reach_interval[1] > contexts[-2],
        drops=tuple(
            Drop(
                from_context=contexts[j],
                to_context=contexts[j + 1],
                nats=float(gains[j] - gains[j + 1]),
                interval=intervals and intervals.drops[j],
            )
            for j in range(len(contexts) - 1)
            if gains[j + 1] < gains[j]
        ),
        num_tokens=num_tokens,
        num_characters=num_characters,
        num_documents=num_documents,
        reference_share=share,
    )


class _Intervals(NamedTuple):
    gains: tuple[Interval, ...]
    drops: tuple[Interval, ...]
    max_gain: Interval
    reach: Interval | None


def curve_intervals(contexts: tuple[int, ...], columns: Doubles, seed: int, resamples: int) -> _Intervals | None:
    """The intervals of gains and drops by the rule for ratios; of the fit's maximum and of R from draws of the gains.

    R is of the draws that have one. None where one document has all the tokens.

    Args:
        contexts: ``(m,)`` K.
        columns: ``(n, m + 2)``: a document's sums of gains at each K and under the whole context, and its tokens.
        seed: Of the draws.
        resamples: How many.
    """
    gains, deviations, shares = linearised(columns[:, :-2].T, columns[:, -1])
    both = scaled_deviations(deviations, shares)
    if both is None:
        return None
    scaled, freedom = both
    fits = np.array([_isotonic(drawn) for drawn in drawn_values(gains, scaled, freedom, seed, resamples).T])
    reaches = [reached for fit in fits if (reached := effective_reach(contexts, fit)) is not None]

    def intervals(values: Doubles, scaled: Doubles) -> tuple[Interval, ...]:
        half = quantile(freedom) * np.sqrt((scaled**2).sum(axis=1))
        return tuple(zip((values - half).tolist(), (values + half).tolist(), strict=True))

    return _Intervals(
        gains=intervals(gains, scaled),
        drops=intervals(-np.diff(gains), np.diff(scaled, axis=0)),
        max_gain=percentile_interval(fits[:, -1]),
        reach=percentile_interval(np.array(reaches)) if reaches else None,
    )


def _gains_surely(contexts: tuple[int, ...], sums: Sequence[DocumentGains], seed: int, resamples: int) -> bool:
    """Whether the largest gain can be told from 0; with too few documents to say, yes."""
    columns = np.array([[*document.gains, document.num_tokens] for document in sums], dtype=np.float64)
    if np.count_nonzero(columns[:, -1]) < MIN_DOCUMENTS or columns[:, -1].sum() < MIN_TOKENS:
        return True
    intervals = curve_intervals(contexts, columns, seed, resamples)
    return intervals is None or intervals.max_gain[0] > 0


def _gain_per_character(sums: Sequence[DocumentGains]) -> float | None:
    """The largest gain, nats per character of S; None where S has none."""
    num_characters = sum(document.num_characters for document in sums)
    if not num_characters:
        return None
    total: Doubles = np.sum([document.gains for document in sums], axis=0)
    return float(_isotonic(total[:-1])[-1] / num_characters)


def _notes_on_documents(model: GainSums) -> list[str]:
    notes = []
    if model.num_incomplete:
        notes.append(
            f"{model.num_incomplete} documents of {model.name} lack one of the short contexts and are left out: run "
            "the same longlens score command again to finish them"
        )
    if model.num_short:
        notes.append(
            f"{model.num_short} of {len(model.texts)} documents have {model.contexts[-1]} tokens of {model.name} or "
            "fewer, the largest K, and contribute nothing"
        )
    if model.num_left_out:
        notes.append(
            f"{model.num_left_out} tokens of {model.name} have probability 0, or no score, under one of the contexts "
            "and are left out"
        )
    return notes


def _notes_on_keys(model: GainSums, own: bool) -> list[str]:
    influence, context = model.corpus.influence, model.contexts[0]
    if own:
        return [
            f"{model.name} is its own evaluator, so there is no curve of key tokens: they would be picked for its own "
            "gain, chance included, which biases it upwards (regression to the mean); give another evaluator"
        ]
    if influence.keys is None:
        return []
    notes = []
    settings = influence.keys.settings
    if influence.evaluator is None and settings["evaluator"] == model.name:
        notes.append(
            f"the keys were selected by an evaluator that is called {model.name} too: if it is the same model, its "
            "gain on them is biased upwards (regression to the mean)"
        )
    if settings["context"] not in (None, context):
        notes.append(
            f"the keys were selected at K={settings['context']}, and the smallest K of {model.name} is {context}, "
            f"so they are not all that gain from more: select them with longlens keys at `context={context}`"
        )
    near = near_threshold_message(model.num_near, model.num_key_tokens, settings["dtype"])
    return [*notes, near] if near else notes


def _notes_on_curves(model: GainSums, everything: Curve, of_keys: Curve | None, of_answers: Curve | None) -> list[str]:
    notes = []
    if model.of("keys") and of_keys is None:
        notes.append(
            f"no key token of {model.name} has {model.contexts[-1]} tokens before it, so there is no curve of key "
            "tokens: use longer documents, or a lower `alpha`"
        )
    for tokens, curve in (("all tokens", everything), ("key tokens", of_keys), ("answers", of_answers)):
        if curve is not None and curve.gain_intervals is None:
            notes.append(
                f"the curve of {tokens} of {model.name} has no intervals: with {curve.num_documents} documents and "
                f"{curve.num_tokens} tokens noise cannot be told from gain, and R is a point estimate (at least "
                f"{MIN_DOCUMENTS} documents and {MIN_TOKENS} tokens are needed)"
            )
    return notes


def _notes_on_reference(model: GainSums, reference: GainSums) -> list[str]:
    notes = []
    if model.of("keys") and not reference.of("keys"):
        notes.append(
            f"the reference {reference.name} is the evaluator, whose own gain on the key tokens is biased upwards: "
            "there is no share of it"
        )
    hashes = [gains.corpus.scores.manifest["model"].get("tokenizer_sha256") for gains in (model, reference)]
    if None not in hashes and hashes[0] != hashes[1]:
        notes.append(
            f"{model.name} and {reference.name} have different tokenizers: K tokens of theirs are different numbers of "
            "characters, so compare R in tokens with care; their gains are compared per character"
        )
    if [short.stride for short in model.shorts] != [short.stride for short in reference.shorts]:
        notes.append(
            f"{model.name} and {reference.name} were scored with different d, so at K they see a little more or less"
        )
    return notes
