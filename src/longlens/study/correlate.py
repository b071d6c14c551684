"""Correlations of LongPPL, PPL and related metrics with benchmark scores, over models scored on the same documents."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from longlens.errors import UserError, shown
from longlens.files import read_json
from longlens.keytokens.selection import KeySource
from longlens.metrics.comparison import check_same_ids, check_same_texts
from longlens.metrics.corpus import Corpus, choose_influence, read_once
from longlens.metrics.longppl import PerplexityResult, PerplexitySums
from longlens.progress import Progress
from longlens.report.charts import correlation_charts
from longlens.report.figures import FORMATS, write_figures
from longlens.report.heatmap import write_correlation_map
from longlens.runs.folder import MANIFEST
from longlens.scoring.reader import open_scores
from longlens.scoring.scores import Scores, identity_of, names_of, same_model, same_run
from longlens.settings.options import KeyRule
from longlens.study.benchmarks import join_benchmarks
from longlens.study.correlation import METRICS, BenchmarkScores, CorrelationTable, correlate_table

RULE = ("alpha", "beta", "gamma", "lcl")
SETTINGS = ("context", "stride", *RULE)


def correlate(
    runs: Sequence[Scores | str | os.PathLike[str]],
    benchmarks: Sequence[str | os.PathLike[str]] | Mapping[str, Mapping[str, float]],
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    use_lcl: bool | None = None,
    context: int | None = None,
    stride: int | None = None,
    families: Mapping[str, str] | None = None,
    ngram: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> CorrelationTable:
    """Correlations between `METRICS` and benchmark scores over models, see `longlens.study.correlation`.

    Args:
        runs: Runs of the models on the same documents: directories of ``longlens longppl``, which contain evaluator and
            thresholds, or of ``longlens score``, or scores.
        benchmarks: Directories of benchmark runs and CSV files, see `join_benchmarks`; or scores by benchmark and name
            of a run (see `longlens.scoring.scores.names_of`).
        evaluator_scores: Scores of the evaluator; by default those in the directories. With neither these nor keys,
            LongPPL is not computed.
        keys: Key tokens, instead of evaluator scores; ``longppl_soft`` and ``longppl_no_lcl`` are then not computed.
        alpha: Threshold of the long-short difference, nats; by default that of the directories, or 2.
        beta: Threshold of the long-context likelihood, nats; by default that of the directories, or -2.
        gamma: Maximum soft weight; by default that of the directories, or 5.
        use_lcl: False selects by LSD only, without beta.
        context: K to use, if the evaluator has several.
        stride: d to use, if this K has several.
        families: Families of runs, by their names; they override those of files. Without either, the model type of the
            configuration is used, with a note.
        ngram: Whether to find re-occurred n-grams, which is the slowest part.
        seed: Seed of resamples and random permutations.
        progress: Shows documents.

    Raises:
        UserError: There are no runs, two runs of one model, or runs of different documents or texts or with different
            evaluators or thresholds; and the errors of `join_benchmarks` and `longlens.perplexity`.
    """
    opened = [open_run(run, context, stride) for run in runs]
    scores = [each.scores for each in opened]
    if not scores:
        raise UserError("no runs to correlate: score documents with each model first, with longlens longppl")
    names = names_of(scores)
    _refuse_same(scores, names)
    given = KeyRule(alpha=alpha, beta=beta, gamma=gamma, lcl=use_lcl, context=context, stride=stride)
    if evaluator_scores is None and keys is None:
        evaluator_scores = _evaluator(opened, names)
        given = _recorded_rule(opened, names, given)
    if isinstance(benchmarks, Mapping):
        joined = BenchmarkScores(scores=benchmarks)
    else:
        joined = join_benchmarks(benchmarks, scores, names)
    results, without_lcl = _results(
        scores, names, evaluator_scores, keys, given, ngram=ngram, progress=progress or Progress()
    )
    metrics: dict[str, list[float | None]] = {
        metric: [getattr(result, metric) for result in results] for metric in METRICS if metric != "longppl_no_lcl"
    }
    metrics["longppl_no_lcl"] = [None if result is None else result.longppl for result in without_lcl]
    of_family, notes = _families(scores, names, {**joined.families, **(families or {})})
    table = correlate_table(
        {metric: metrics[metric] for metric in METRICS if any(value is not None for value in metrics[metric])},
        {name: [of_model.get(model) for model in names] for name, of_model in joined.scores.items()},
        models=names,
        families=of_family,
        seed=seed,
    )
    said = [*joined.notes, *notes, *(note for result in results for note in result.warnings), *table.notes]
    settings = {"evaluator": results[0].evaluator, **{name: results[0].settings.get(name) for name in SETTINGS}}
    return replace(table, notes=list(dict.fromkeys(said)), settings=settings)


def write_correlation_figures(
    table: CorrelationTable, folder: str | os.PathLike[str], *, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Scatter plots of LongPPL and PPL against every benchmark, and a heat map of the rank agreement of benchmarks.

    Args:
        table: Result of `correlate`.
        folder: Output directory; created if it does not exist. Files of the same names are replaced.
        formats: Formats, from ``png`` and ``svg``.

    Raises:
        UserError: matplotlib is not installed, a format is unknown, or a file cannot be written.

    Sources: the paper, figures 1(b), 5, 6; HELMET (Yen et al. 2024), Spearman correlation of its categories.
    """
    written = write_figures(list(correlation_charts(table)), folder, formats=formats)
    names = list(table.agreement)
    if len(names) < 2:
        return written
    return written + write_correlation_map(
        [[table.agreement[one][other].spearman for other in names] for one in names],
        names,
        folder,
        name="benchmarks",
        title=f"How benchmarks rank {len(table.models)} models: Spearman's rho",
        caption="Of each two benchmarks, over the models that have both scores.",
        formats=formats,
    )


class OpenedRun(NamedTuple):
    """A run, and the other contents of a run directory of longlens longppl."""

    scores: Scores
    folder: Path | None = None
    evaluator: Scores | None = None
    settings: Mapping[str, Any] | None = None


def open_run(run: Scores | str | os.PathLike[str], context: int | None, stride: int | None) -> OpenedRun:
    """Opens scores, a run directory of longlens score, or one of longlens longppl with its evaluator and settings."""
    if isinstance(run, Scores):
        return OpenedRun(run)
    folder = Path(run)
    if (folder / MANIFEST).is_file() or not (folder / "model" / MANIFEST).is_file():
        return OpenedRun(open_scores(folder), folder)
    scores = open_scores(folder / "model")
    place = folder / "evaluator"
    evaluator = open_scores(place, context=context, stride=stride) if (place / MANIFEST).is_file() else None
    settings: Mapping[str, Any] | None = None
    if (folder / "perplexity.json").is_file():
        result = read_json(folder / "perplexity.json", "run longlens longppl again, which rewrites it")
        settings = result.get("settings")
        own = (scores.name, scores.manifest["model"]["name"])
        if evaluator is None and result.get("evaluator") in own and scores.short_contexts:
            evaluator = scores  # `evaluator=self`
    return OpenedRun(scores, folder, evaluator, settings if isinstance(settings, Mapping) else None)


def _refuse_same(scores: Sequence[Scores], names: Sequence[str]) -> None:
    for place, one in enumerate(scores):
        for name, other in zip(names[place + 1 :], scores[place + 1 :], strict=True):
            if same_run(one, other) or same_model(one, other):
                raise UserError(f"{names[place]} and {name} are runs of the same model: pass one of them")


def _evaluator(opened: Sequence[OpenedRun], names: Sequence[str]) -> Scores | None:
    """Returns the common evaluator of all run directories.

    Raises:
        UserError: Some have a different evaluator, or none.
    """
    found = [(name, each) for name, each in zip(names, opened, strict=True) if each.evaluator is not None]
    if not found:
        selected = [str(each.folder) for each in opened if each.settings and each.settings.get("context")]
        if selected:
            raise UserError(f"{shown(selected[0])} was created with key tokens from a file: pass it as `keys`")
        return None
    name, first = found[0]
    assert first.evaluator is not None
    for other, each in zip(names, opened, strict=True):
        if each.evaluator is None:
            raise UserError(f"{other} has no evaluator scores, but {name} has: pass `evaluator_scores` for all")
        if not (same_run(first.evaluator, each.evaluator) or same_model(first.evaluator, each.evaluator)):
            one, another = first.evaluator.name, each.evaluator.name
            raise UserError(
                f"key tokens of {name} are by {shown(one)} and those of {other} by {shown(another)}, possibly "
                "different models with the same name: LongPPL is comparable only with one evaluator; pass its scores "
                "as `evaluator_scores`"
            )
        if first.evaluator.selected != each.evaluator.selected:
            raise UserError(
                f"the evaluator's short context (K, d) is {_pair(first.evaluator)} for {name} and "
                f"{_pair(each.evaluator)} for {other}: choose one with `context` and `stride`"
            )
    return first.evaluator


def _pair(scores: Scores) -> str:
    return "none" if scores.selected is None else f"({scores.selected.context}, {scores.selected.stride})"


def _recorded_rule(opened: Sequence[OpenedRun], names: Sequence[str], given: KeyRule) -> KeyRule:
    """Returns the thresholds that were passed, or else those in the run directories.

    Raises:
        UserError: The run directories have different thresholds.
    """
    chosen = given.keywords()
    recorded = [(name, each.settings) for name, each in zip(names, opened, strict=True) if each.settings]
    for setting in RULE:
        parameter = "use_lcl" if setting == "lcl" else setting
        values = {settings.get(setting): name for name, settings in recorded if settings.get(setting) is not None}
        if chosen[parameter] is not None or not values:
            continue
        if len(values) > 1:
            (one, of_one), (other, of_other) = list(values.items())[:2]
            raise UserError(f"{setting} is {one} in {of_one} and {other} in {of_other}: choose one with `{parameter}`")
        value = next(iter(values))
        chosen[parameter] = None if setting == "lcl" and value else value
    if chosen["use_lcl"] is False and given.beta is None:
        chosen["beta"] = None
    return KeyRule(**{("lcl" if name == "use_lcl" else name): value for name, value in chosen.items()})


def _results(
    scores: Sequence[Scores],
    names: Sequence[str],
    evaluator: Scores | None,
    keys: KeySource | None,
    rule: KeyRule,
    *,
    ngram: bool,
    progress: Progress,
) -> tuple[list[PerplexityResult], list[PerplexityResult | None]]:
    """Returns the perplexities of every run, and those without the LCL criterion; every document is read once."""
    influence = choose_influence(evaluator, keys, rule)
    corpora = [Corpus(run, influence, name=name) for run, name in zip(scores, names, strict=True)]
    check_same_ids(corpora)
    sums = [PerplexitySums(corpus, ngram=ngram) for corpus in corpora]
    bare: list[PerplexitySums] = []
    if evaluator is not None and rule.lcl is not False:
        fields = ("alpha", "gamma", "context", "stride")
        no_lcl = choose_influence(evaluator, None, KeyRule(lcl=False, **{name: getattr(rule, name) for name in fields}))
        bare = [PerplexitySums(Corpus(run, no_lcl, name=name)) for run, name in zip(scores, names, strict=True)]
    progress.start("documents", unit="documents", total=len(scores[0]))
    try:
        for done, (*rows, evaluated) in enumerate(read_once(scores[0].ids, [*scores, influence.evaluator]), start=1):
            for place, row in enumerate(rows):
                assert row is not None
                for each in [sums[place], *bare[place : place + 1]]:
                    each.add(each.corpus.document(row, evaluated))
            progress.update(done)
    finally:
        progress.finish()
    results = [each.result() for each in sums]
    for result in results[1:]:
        check_same_texts(results[0], result)
    return results, [each.result() for each in bare] or [None] * len(scores)


def _families(scores: Sequence[Scores], names: Sequence[str], given: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The family of each run, and notes about those that were not specified.

    Raises:
        UserError: A family was specified for something that is not a run.
    """
    if unknown := [name for name in given if name not in names]:
        raise UserError(f"`families` names {shown(unknown[0])}, which is not one of the runs: {', '.join(names)}")
    found, guessed = [], []
    for run, name in zip(scores, names, strict=True):
        if name in given:
            found.append(given[name])
            continue
        config = identity_of(run).config or {}
        found.append(str(config.get("model_type") or run.manifest["model"].get("architecture") or "unknown"))
        guessed.append(name)
    if not guessed:
        return found, []
    return found, [
        f"no family was set for {', '.join(guessed[:4])}{', …' if len(guessed) > 4 else ''}, so their model type "
        "is used instead (set it with `families`)"
    ]
