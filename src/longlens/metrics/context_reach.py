"""Context reach: the context length up to which a model still gains, from scores under several short contexts.

With scores at K_1 < K_2 < … < K_m, and S the tokens with at least K_m tokens before them::

    G(K) = mean over S of logp(token | K tokens) - logp(token | K_1 tokens)              nats, G(K_1) = 0
    G̃    = the isotonic fit of G(K_1), …, G(K_m), linear in log K between them           so max G̃ = G̃(K_m)
    R    = the smallest K with G̃(K) >= 0.9 max G̃                                         tokens

S is the same for every K, so that G compares contexts and not tokens. A token "at K" has K to K + d - 1 tokens before
it, hence d <= K/2. A weak model can have a long R and gain little: R is always shown together with max G and with the
gain of a reference model.

Prior work: Khandelwal et al. 2018, "Sharp Nearby, Fuzzy Far Away" (the loss under a truncated context, and the length
beyond which it no longer falls); Sun et al. 2021, "Do Long-Range Language Models Actually Use Long-Range Context?"
(mean gains hide that only few tokens gain: hence a separate curve for key tokens); O'Connor and Andreas 2021, "What
Context Features Can Transformer Language Models Use?", and Fernandes et al. 2021, "Measuring and Increasing Context
Usage in Context-Aware Machine Translation" (the gain as information in nats, between two amounts of context); Cífka and
Liutkus 2023, "Black-box language model explanation by context length probing" (every token under every context length;
code cifkao/context-probing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longlens.errors import UserError
from longlens.keytokens.selection import KeySource, near_threshold_message, warn_near_threshold
from longlens.metrics.corpus import AnswerSpans, Corpus, Influence, choose_influence, is_evaluator
from longlens.metrics.gains import (
    MIN_DOCUMENTS,
    Curve,
    GainSums,
    check_reference,
    curve_of,
    rising_contexts,
)
from longlens.metrics.uncertainty import MIN_TOKENS, RESAMPLES
from longlens.scoring.scores import Scores
from longlens.settings.options import KeyRule
from longlens.tables import Tabular, plain

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReachResult(Tabular):
    """Context reach of a model. As a table: one row per curve and K.

    Attributes:
        model: Name of the model.
        evaluator: Name of the evaluator; None if no key tokens were selected.
        reference: Name of the reference; None without one.
        all: Curve of all tokens with K_m tokens before them.
        keys: Curve of those that are key; None if there are none.
        answers: Curve of those that share a character with an answer; None if there are none.
        num_short_documents: Number of documents of K_m tokens or fewer, which contribute nothing.
        settings: ``contexts``, ``strides``; ``alpha``, ``beta``, ``lcl`` of the key tokens; ``bos`` and ``dtype`` of
            the model.
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
    """Computes context reach: the gain at every scored K, and the effective reach R; see the module docstring.

    Scoring costs about ``n (1 + K/d)`` tokens of model input per document of n tokens and per K. If a K has several
    strides, the smallest is used.

    Args:
        model_scores: Scores of the model, at three K or more with d <= K/2.
        evaluator_scores: Scores of another model, on the same texts, including K_1, at which it selects the key tokens.
        keys: Key tokens, instead of evaluator scores.
        alpha: Threshold of the long-short difference, nats; 2 by default.
        beta: Threshold of the long-context likelihood, nats; -2 by default.
        use_lcl: False selects by LSD only, without beta.
        answers: ``[start, end)`` in characters of the answers, by document id, instead of the stored ones.
        reference_scores: Scores of a model to measure the gain by, on the same texts and at the same K.
        seed: Seed of the draws that give the intervals of the largest gain and of R.
        resamples: Number of draws.

    Raises:
        UserError: There are fewer than three K, or d > K/2; both evaluator scores and keys are passed, or settings that
            conflict with keys or select nothing; a document is missing there or has another text; the reference has
            other documents or K; or no document is longer than K_m.

    Warns:
        LonglensWarning: Tokens are closer to a threshold than the error of the evaluator's dtype.
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
    """The influence that selects key tokens at K_1, without soft weights, and whether the model is its own evaluator.

    Raises:
        UserError: Errors of `reach` that need no scores to be read.
    """
    smallest = rising_contexts(scores)[0].context
    if None in (evaluator_scores, keys) and is_evaluator(scores, evaluator_scores, keys):
        choose_influence(evaluator_scores, keys, rule)  # for its checks
        return NO_INFLUENCE, True
    if evaluator_scores is not None and smallest not in {short.context for short in evaluator_scores.short_contexts}:
        evaluator, model = evaluator_scores.name, scores.name
        have = ", ".join(f"K={short.context}" for short in evaluator_scores.short_contexts) or "no short context"
        raise UserError(
            f"the evaluator {evaluator} was scored at {have}, and not at K={smallest}, the smallest K of {model}, "
            f"which selects the key tokens: score it with `context={smallest}`, `stride={max(1, smallest // 2)}`"
        )
    if evaluator_scores is not None:
        rule = replace(rule, context=smallest)
    return replace(choose_influence(evaluator_scores, keys, rule), gamma=None), False


def reach_result(
    model: GainSums, reference: GainSums | None, *, own: bool, seed: int = 0, resamples: int = RESAMPLES
) -> ReachResult:
    """Computes the curves from the sums.

    Args:
        model: Sums of the model.
        reference: Sums of the model that the gain is measured by.
        own: Whether the model is its own evaluator.
        seed: Seed of the draws.
        resamples: Number of draws.

    Raises:
        UserError: The reference has other documents or K; no document is longer than K_m.
    """
    if reference is not None:
        check_reference(model, reference)
    contexts, influence = model.contexts, model.corpus.influence
    everything, of_keys, of_answers = (
        curve_of(contexts, model.of(tokens), [] if reference is None else reference.of(tokens), seed, resamples)
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
            "gain, chance included, which biases it upwards (regression to the mean); pass another evaluator"
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
            "its share is not reported"
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
