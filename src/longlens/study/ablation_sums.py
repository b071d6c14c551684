"""Accumulates the sums of an ablation over documents: every metric of every model, in one pass over all scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from longlens.errors import UserError
from longlens.keytokens.selection import KeyTokensView, select_key_tokens
from longlens.metrics.comparison import check_same_ids
from longlens.metrics.corpus import Corpus, Influence, choose_influence, read_once
from longlens.metrics.longppl import PerplexityResult, PerplexitySums, column, perplexity_interval
from longlens.metrics.thresholds import ThresholdSums
from longlens.metrics.uncertainty import MIN_TOKENS, Doubles, Interval, estimate
from longlens.progress import Progress
from longlens.scoring.scores import (
    Scores,
    ShortContext,
    TokenScores,
    choose_short_context,
    names_of,
    same_model,
    same_run,
)
from longlens.settings.options import KeyRule
from longlens.study.agreement import KeyAgreement, KeyOverlap, Selected
from longlens.study.ranking import values_of

Grid = tuple[Sequence[float], Sequence[float]]
"""alphas and betas, strictly increasing; the first beta is -inf, which disables the LCL criterion."""
SELF = "self"
_METRICS = (
    # metric, whose sums it uses, what counts its tokens, whether it depends on the evaluator or its K
    ("ppl", "scored", "num_tokens", False),
    ("bits_per_character", "characters", "num_tokens", False),
    ("ppl_ngram", "ngram", "num_ngram_tokens", False),
    ("ppl_from_context", "from_context", "num_from_context_tokens", True),
    ("longppl_soft", "soft", "num_tokens", True),
    ("key_bits_per_character", "key_characters", "num_key_tokens", True),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The evaluator that selects key tokens, and its short context.

    Attributes:
        evaluator: Its name; "self" if each model is its own evaluator.
        context: K, tokens.
        stride: d, tokens.
    """

    evaluator: str
    context: int
    stride: int

    @property
    def short(self) -> ShortContext:
        """The short context: K and d."""
        return ShortContext(self.context, self.stride)


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricSums:
    """A metric of every model, as sums over documents.

    Attributes:
        metric: Its name, see `longlens.study.ablation`.
        setting: Setting that selects or weights tokens; None if there is none.
        alpha: Threshold of the long-short difference, nats; None if there is none.
        beta: Threshold of the long-context likelihood, nats; None if there is none.
        sums: ``(m, n, 2)``: log-probability and weight of each model and document.
        num_tokens: ``(m,)`` number of tokens of each value.
        is_bits: Whether the weight is a number of characters, and the value is bits per character.
    """

    metric: str
    setting: Setting | None
    alpha: float | None
    beta: float | None
    sums: Doubles
    num_tokens: Sequence[int]
    is_bits: bool = False

    @cached_property
    def nats(self) -> Doubles:
        """``(m,)`` nats per unit of weight; NaN if the weight is 0, infinity if a token has probability 0."""
        values: Doubles = values_of(self.sums, np.ones((1, self.sums.shape[1])))[0]
        return values

    @property
    def values(self) -> list[float | None]:
        """A perplexity, or bits, of each model; None if it does not exist or is infinite."""
        with np.errstate(over="ignore"):
            shown = self.nats / math.log(2) if self.is_bits else np.exp(self.nats)
        return [float(value) if math.isfinite(value) else None for value in shown]

    @property
    def intervals(self) -> list[Interval | None]:
        """95 % intervals of the values over documents."""
        return [self._interval(*pair) for pair in zip(self.sums, self.num_tokens, strict=True)]

    def _interval(self, sums: Doubles, num_tokens: int) -> Interval | None:
        if not self.is_bits:
            return perplexity_interval(sums, num_tokens)[0]
        estimated = estimate(sums) if num_tokens >= MIN_TOKENS else None
        nats = None if estimated is None else estimated.interval(relative=True)
        return None if nats is None else (-nats[1] / math.log(2), -nats[0] / math.log(2))


class AblationSums:
    """Accumulates all models with all evaluators, at every K and d.

    Args:
        runs: Scores of the models.
        evaluators: Scores of the evaluators; if an evaluator is also a model, the same object.
        rule: `alpha`, `beta`, `gamma` of metrics without grid; `context` and `stride` to select short contexts.
        grid: alphas and betas.
        self_evaluation: Whether each model is also its own evaluator; None for those with short-context scores.

    Raises:
        UserError: An input is invalid, as in `longlens.study.ablation.ablate`, which is found before reading documents.
    """

    def __init__(
        self,
        runs: Sequence[Scores],
        evaluators: Sequence[Scores],
        rule: KeyRule,
        grid: Grid,
        self_evaluation: bool | None,
    ) -> None:
        self._runs, self._evaluators, self.models = runs, evaluators, names_of(runs)
        self._parts = [
            _Part(setting, place, evaluators[place], runs, self.models, rule, grid, ngram=number == 0)
            for number, (setting, place) in enumerate(_settings(evaluators, rule))
        ]
        check_same_ids(self._parts[0].corpora)
        for name, evaluator in zip(names_of(evaluators), evaluators, strict=True):
            _check_has(name, evaluator, runs[0].ids)
        first = self.settings[0]
        able = [place for place, run in enumerate(runs) if first.short in run.short_contexts]
        lacking = [] if self_evaluation is False else [n for place, n in enumerate(self.models) if place not in able]
        if self_evaluation and lacking:
            raise UserError(
                f"{lacking[0]} has no short-context scores at K={first.context}, d={first.stride}, which its own "
                f"selection of key tokens needs: score it with `context={first.context}` and `stride={first.stride}`"
            )
        self._lacking = lacking
        self._own = {
            place: _Own(runs[place], self.models[place], first, rule)
            for place in ([] if self_evaluation is False else able)
        }
        self._between = {pair: KeyOverlap() for pair in itertools.combinations(range(len(self._parts)), 2)}
        self._with_own = {
            place: KeyOverlap() for place in self._own if not any(same_run(runs[place], one) for one in evaluators)
        }
        self._ids: list[str] = []

    @property
    def settings(self) -> list[Setting]:
        """The evaluators with their K and d."""
        return [part.setting for part in self._parts]

    def read(self, progress: Progress) -> None:
        """Reads every document once.

        Raises:
            UserError: The texts differ, or a document lacks scores at a K.
        """
        ids = self._runs[0].ids
        progress.start("ablation", unit="documents", total=len(ids))
        try:
            for id, rows in zip(ids, read_once(ids, [*self._runs, *self._evaluators]), strict=True):
                self._add(rows)
                self._ids.append(id)
                progress.update(len(self._ids))
        finally:
            progress.finish()

    def _add(self, rows: Sequence[TokenScores | None]) -> None:
        there = [row for row in rows if row is not None]
        models, evaluated = there[: len(self._runs)], there[len(self._runs) :]
        selected = []
        for part in self._parts:
            row = _at(evaluated[part.place], part.setting)
            part.add(models, row)
            selected.append(_selected(part.influence, row))
        for place, own in self._own.items():
            row = _at(models[place], own.setting)
            own.sums.add(own.sums.corpus.document(models[place], row))
            if place in self._with_own:
                self._with_own[place].add(selected[0], _selected(own.sums.corpus.influence, row))
        for (one, other), overlap in self._between.items():
            overlap.add(selected[one], selected[other])

    def metrics(self, alpha: float, beta: float) -> list[MetricSums]:
        """Returns every metric of every model; metrics with thresholds at this alpha and beta."""
        order = sorted(range(len(self._ids)), key=self._ids.__getitem__)  # the document order of results
        found = [
            each
            for number, part in enumerate(self._parts)
            for each in part.metrics(order, alpha, beta, first=number == 0)
        ]
        if self._own:
            setting = Setting(evaluator=SELF, context=self.settings[0].context, stride=self.settings[0].stride)
            sums = np.zeros((len(self._runs), len(order), 2))
            for place, own in self._own.items():
                sums[place] = column(own.sums.result().documents, "key")
            numbers = [int(number) for number in sums[..., 1].sum(axis=1)]
            found.append(
                MetricSums(
                    metric="longppl_self", setting=setting, alpha=alpha, beta=beta, sums=sums, num_tokens=numbers
                )
            )
        return found

    def overlaps(self) -> Iterator[tuple[Setting, Setting, bool, KeyAgreement]]:
        """Yields the key token agreement of each pair of settings, then of the first with each model's own."""
        for (one, other), overlap in self._between.items():
            yield self.settings[one], self.settings[other], False, overlap.result()
        for place, overlap in self._with_own.items():
            yield self.settings[0], self._own[place].setting, True, overlap.result()

    def warnings(self) -> list[str]:
        """Returns the warnings of the perplexities, and those about missing scores."""
        first = self.settings[0]
        notes = [note for part in self._parts for result in part.results for note in result.warnings]
        for part in self._parts:
            notes += [
                f"{name} is both a model and an evaluator: it selects tokens that it predicts well itself, so its "
                "LongPPL on its own key tokens is low and its rank there is not meaningful"
                for name, run in zip(self.models, self._runs, strict=True)
                if same_model(run, self._evaluators[part.place])
            ]
        if self._lacking:
            notes.append(
                f"no self-evaluation (table 6) of {', '.join(self._lacking)}, without short-context scores at "
                f"K={first.context}, d={first.stride}: score again with `context={first.context}` and "
                f"`stride={first.stride}`"
            )
        if len({run.manifest["model"].get("tokenizer_sha256") for run in self._runs}) > 1:
            notes.append(
                "the models have different tokenizers, and perplexities are per token of each, as in the paper: "
                "bits_per_character and key_bits_per_character are comparable"
            )
        return list(dict.fromkeys(notes))


class _Part:
    """Accumulates all models with the key tokens of one setting.

    Args:
        setting: The setting.
        place: Index of its evaluator.
        evaluator: Scores of the evaluator.
        runs: Runs of the models.
        names: Names of the models.
        rule: Thresholds and gamma.
        grid: alphas and betas.
        ngram: Whether to find re-occurring n-grams, which is needed only once.
    """

    def __init__(
        self,
        setting: Setting,
        place: int,
        evaluator: Scores,
        runs: Sequence[Scores],
        names: Sequence[str],
        rule: KeyRule,
        grid: Grid,
        *,
        ngram: bool,
    ) -> None:
        self.setting, self.place, self._grid = setting, place, grid
        self.influence = _influence(evaluator, setting, rule)
        self.corpora = [Corpus(run, self.influence, name=name) for run, name in zip(runs, names, strict=True)]
        self._sums = [PerplexitySums(corpus, ngram=ngram) for corpus in self.corpora]
        self._tables: list[list[Doubles]] = [[] for _ in runs]

    def add(self, rows: Sequence[TokenScores], evaluated: TokenScores) -> None:
        """Adds a document of every model."""
        for corpus, sums, tables, row in zip(self.corpora, self._sums, self._tables, rows, strict=True):
            document = corpus.document(row, evaluated)
            sums.add(document)
            thresholds = ThresholdSums(*self._grid)
            thresholds.add(document)
            table = thresholds.result()
            tables.append(np.stack([table.logprob, table.num_tokens], axis=-1))

    @cached_property
    def results(self) -> list[PerplexityResult]:
        """Returns the results of every model, after all documents were added."""
        return [sums.result() for sums in self._sums]

    def metrics(self, order: Sequence[int], alpha: float, beta: float, *, first: bool) -> Iterator[MetricSums]:
        """Yields the metrics; those that do not depend on an evaluator only from the first part."""
        for metric, name, counted, needs_keys in _METRICS:
            sums = [column(result.documents, name) for result in self.results]
            has_all = [each for each in sums if each is not None]
            if (first or needs_keys) and len(has_all) == len(sums):
                has_thresholds = metric == "key_bits_per_character"
                yield MetricSums(
                    metric=metric,
                    setting=self.setting if needs_keys else None,
                    alpha=alpha if has_thresholds else None,
                    beta=beta if has_thresholds else None,
                    sums=np.stack(has_all),
                    num_tokens=[int(getattr(result, counted) or 0) for result in self.results],
                    is_bits=metric.endswith("character"),
                )
        tables = np.array([[of_model[place] for place in order] for of_model in self._tables])  # (m, n, A, B, 2)
        for (i, at_alpha), (j, at_beta) in itertools.product(enumerate(self._grid[0]), enumerate(self._grid[1])):
            has_lcl = at_beta > -math.inf
            yield MetricSums(
                metric="longppl" if has_lcl else "longppl_no_lcl",
                setting=self.setting,
                alpha=at_alpha,
                beta=at_beta if has_lcl else None,
                sums=tables[:, :, i, j],
                num_tokens=[int(number) for number in tables[:, :, i, j, 1].sum(axis=1)],
            )


class _Own:
    """Accumulates a model that is its own evaluator.

    Args:
        run: Scores of the model.
        name: Name of the model.
        setting: K and d.
        rule: Thresholds.
    """

    def __init__(self, run: Scores, name: str, setting: Setting, rule: KeyRule) -> None:
        self.setting = Setting(evaluator=name, context=setting.context, stride=setting.stride)
        self.sums = PerplexitySums(Corpus(run, _influence(run, setting, rule), name=name))


def _influence(scores: Scores, setting: Setting, rule: KeyRule) -> Influence:
    chosen = replace(rule, context=setting.context, stride=setting.stride)
    return choose_influence(scores, None, chosen)


def _settings(evaluators: Sequence[Scores], rule: KeyRule) -> Iterator[tuple[Setting, int]]:
    """Yields every evaluator, by its index, at every K and d, the largest K first."""
    names = names_of(evaluators)
    for place, (name, evaluator) in enumerate(zip(names, evaluators, strict=True)):
        if any(same_run(evaluator, other) for other in evaluators[:place]):
            raise UserError(f"evaluator {name} occurs twice: pass it once, all its K are used")
        if not len(evaluator):
            raise UserError(f"the scores of evaluator {name} contain no documents: score the same documents with all")
        select_key_tokens(evaluator)  # raises an error with the next step if there are no short-context scores
        choose_short_context(evaluator.short_contexts, rule.context, rule.stride)
        for context, stride in sorted(evaluator.short_contexts, key=lambda short: (-short.context, short.stride)):
            if rule.context in (None, context) and rule.stride in (None, stride):
                yield Setting(evaluator=name, context=context, stride=stride), place


def _check_has(name: str, evaluator: Scores, ids: Sequence[str]) -> None:
    """Rejects an evaluator that lacks documents, before any document is read."""
    there = frozenset(evaluator.ids)
    lacking = [id for id in ids if id not in there]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(ids)} documents were not scored with the evaluator {name}, such as "
            f"{lacking[0]!r}: score the same documents with all"
        )


def _at(row: TokenScores, setting: Setting) -> TokenScores:
    if setting.short not in row.short:
        raise UserError(
            f"document {row.id!r} has no scores of {setting.evaluator} at K={setting.context}, d={setting.stride}, "
            "which others have: run the same longlens score command again to finish them"
        )
    return row if row.selected == setting.short else row.at(context=setting.context, stride=setting.stride)


def _selected(influence: Influence, row: TokenScores) -> Selected:
    assert isinstance(influence.keys, KeyTokensView)
    return Selected(row, influence.keys.of(row))
