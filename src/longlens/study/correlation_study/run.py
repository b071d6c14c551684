"""``longlens study reproduce correlation``: does LongPPL track long-context tasks across models, and PPL not?

::

    OUT/evaluators/FAMILY/            scores of the base models under both contexts (a run of `longlens.score`)
    OUT/tuned/FAMILY-NAME/            fine-tuned weights
    OUT/scores/FAMILY-VARIANT/        scores of a variant
    OUT/metrics/FAMILY-VARIANT.json   its perplexities
    OUT/tasks/FAMILY-VARIANT/TASK-SEED.json what it answered
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

import longlens
from longlens.corpus import Document
from longlens.errors import LonglensWarning, UserError
from longlens.keytokens import KeyTokens, select_key_tokens
from longlens.models import load_tokenizer, load_transformers
from longlens.scoring.reader import open_scores
from longlens.scoring.transformers import ContinuationScorer, TransformersScorer
from longlens.settings.options import BETA, Loading
from longlens.settings.recipe import Integer, Settings
from longlens.study import reproduce
from longlens.study.correlation import compare_dependent, correlate_table
from longlens.study.correlation_study.questions import CHANCE, TaskSettings, accuracy, ask, make_questions
from longlens.study.correlation_study.variants import VariantSettings, make_variant
from longlens.study.longce.model import save_model
from longlens.study.reproduce import Inputs, Steps, StudySettings, Table, identities
from longlens.study.texts import four_kinds
from longlens.study.tuning import Tuning, tune

_LOGGER = logging.getLogger(__name__)
DTYPE = "float32"
THRESHOLDS = {f"longppl, alpha {alpha}, beta {beta}": (alpha, beta) for alpha, beta in ((2, -1), (1, -2), (1, -1))}
"""Thresholds of the paper's Table 2 other than the defaults."""
METRICS = (
    "longppl",
    "longppl_cross",
    "longppl_self",
    *THRESHOLDS,
    "longppl_soft",
    "longppl_no_lcl",
    "lcl_only",
    "ppl",
    "ppl_from_context",
    "ppl_ngram",
    "key_share",
)


class Family(Settings):
    """A base model, which is one of the variants, and what is made of it.

    Attributes:
        model: Its name.
        variants: By name.
        tuning: Fine-tuning runs by name, for `VariantSettings.training`.
    """

    model: str
    variants: dict[str, VariantSettings]
    tuning: dict[str, Tuning] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Family:
        for name, variant in self.variants.items():
            if variant.training is not None and variant.training not in self.tuning:
                raise UserError(f"variant {name} has the weights of {variant.training!r}, which tuning does not have")
        return self


class CorrelationStudy(StudySettings):
    """Settings of the experiment.

    Attributes:
        families: By name.
        documents: Documents of each kind of text.
        tokens: What they are truncated to, by the tokenizer of the first family.
        context: K of the evaluators, tokens.
        stride: d.
        share_documents: Number of documents that each variant also evaluates by itself (d = K there), for its own
            LongPPL and its fraction of key tokens.
        tasks: What is asked, by name.
        questions: Number of questions of each task and seed.
        subsets: Random subsets of tokens, as many as key tokens.
    """

    families: dict[str, Family] = Field(min_length=1)
    documents: Integer = Field(ge=1)
    tokens: Integer = Field(ge=16)
    context: Integer = Field(ge=1)
    stride: Integer = Field(ge=1)
    share_documents: Integer = Field(ge=0)
    tasks: dict[str, TaskSettings]
    questions: Integer = Field(ge=1)
    subsets: Integer = Field(ge=1)


def read(study: CorrelationStudy) -> Inputs:
    """The documents that metrics are measured on, and which models they are."""
    models = [family.model for family in study.families.values()]
    documents = four_kinds(load_tokenizer(models[0]), count=study.documents, tokens=study.tokens)
    texts = hashlib.sha256("\0".join(document.text for document in documents).encode()).hexdigest()
    return Inputs({"texts_sha256": texts, "identities": identities(models, DTYPE)}, documents)


def run(study: CorrelationStudy, steps: Steps, documents: Sequence[Document]) -> dict[str, Any]:
    """Scores and asks all variants, and correlates."""
    return _Experiment(study, steps, documents).run()


class _Experiment:
    def __init__(self, study: CorrelationStudy, steps: Steps, documents: Sequence[Document]) -> None:
        self.study, self.steps, self.documents = study, steps, documents

    def run(self) -> dict[str, Any]:
        rows = []
        for name, family in self.study.families.items():
            self._evaluate(name, family)
        for name, family in self.study.families.items():
            for variant in family.variants:
                _LOGGER.info(f"{name} {variant}")
                rows.append(_Candidate(self, name, variant).row())
        return summarize(self.study, rows) | {"lsd": [row for name in self.study.families for row in self._lsd(name)]}

    def _lsd(self, name: str) -> list[dict[str, Any]]:
        """How many tokens of each kind of text gain from the long context, by the base model; percent."""
        by_kind: dict[str, list[npt.NDArray[np.float32]]] = {}
        scores = self.evaluator(name)
        for document in self.documents:
            found = scores.get(document.id)
            lsd = found.long_logprobs - found.short_logprobs
            by_kind.setdefault(document.metadata["kind"], []).append(lsd[np.isfinite(lsd)])
        rows = []
        for kind, parts in by_kind.items():
            lsd = np.concatenate(parts)
            above, below = (100 * float(there.mean()) for there in (lsd > 2, lsd < 0.5))
            rows.append({"family": name, "kind": kind, "num_tokens": len(lsd), "above_2": above, "below_half": below})
        return rows

    def _evaluate(self, name: str, family: Family) -> None:
        """Scores of a base model under both contexts."""
        marker = f"evaluators/{name}.json"

        def make() -> dict[str, Any]:
            scores = longlens.score(
                self.documents,
                _load(family.model),
                context=self.study.context,
                stride=self.study.stride,
                out=self.steps.path / "evaluators" / name,
                progress=self.steps.progress,
            )
            keys = select_key_tokens(scores)
            return {"num_key_tokens": sum(len(_indices(keys.get(d.id))) for d in self.documents)}

        self.steps.json(marker, make)

    def evaluator(self, name: str) -> Any:
        """Stored scores of a base model."""
        return open_scores(self.steps.path / "evaluators" / name)


class _Candidate:
    """A variant of a family; its model is loaded when a step needs it."""

    def __init__(self, experiment: _Experiment, family: str, variant: str) -> None:
        self.experiment, self.study, self.steps = experiment, experiment.study, experiment.steps
        self.family, self.name = family, variant
        self.settings = self.study.families[family].variants[variant]

    @cached_property
    def scorer(self) -> ContinuationScorer:
        """Of the changed model, in fp32."""
        family = self.study.families[self.family]
        tuned = self.settings.training
        place = family.model if tuned is None else str(self._tuned(family, tuned))
        base = _load(place)
        model = make_variant(base.model, self.settings)
        return ContinuationScorer(model, base.tokenizer, name=f"{self.family} {self.name}")

    def _tuned(self, family: Family, name: str) -> Path:
        def make(path: Path) -> None:
            base = _load(family.model)
            tune(base.model, base.tokenizer, family.tuning[name], self.steps.progress)
            save_model(base.model, path)
            base.tokenizer.save_pretrained(path)

        return self.steps.folder(f"tuned/{self.family}-{name}", make)

    def row(self) -> dict[str, Any]:
        """Metrics and benchmark scores."""
        label = f"{self.family}-{self.name}"
        metrics = self.steps.json(f"metrics/{label}.json", self._metrics)
        answers = {task: self._answers(spec, f"tasks/{label}/{task}") for task, spec in self.study.tasks.items()}
        return {"family": self.family, "variant": self.name, "metrics": metrics, "tasks": answers}

    def _answers(self, task: TaskSettings, name: str) -> dict[str, Any]:
        """Means over the questions of all seeds, which are as many for each."""
        parts = [self.steps.json(f"{name}-{seed}.json", partial(self._answer, task, seed)) for seed in self.study.seeds]
        means = {key: statistics.fmean(part[key] for part in parts) for key in ("exact", "choice", "nll")}
        return {"n": sum(part["n"] for part in parts), **means, "chance": CHANCE}

    def _answer(self, task: TaskSettings, seed: int) -> dict[str, Any]:
        tokenizer = self.scorer.tokenizer
        groups = make_questions(task, count=self.study.questions, seed=seed, tokenizer=tokenizer)
        found = [row for group in groups for row in ask(self.scorer, group)]
        return {"n": len(found), **accuracy(found), "nll": -statistics.fmean(row["target"] for row in found)}

    def _metrics(self) -> dict[str, Any]:
        study, documents = self.study, self.experiment.documents
        out = self.steps.path / "scores" / f"{self.family}-{self.name}"
        scores = longlens.score(documents, self.scorer, context=None, out=out, progress=self.steps.progress)
        own = self.experiment.evaluator(self.family)
        values: dict[str, Any] = {}
        with warnings.catch_warnings():
            # Of a base model that is its own evaluator, and of few key tokens: both are in the result.
            warnings.simplefilter("ignore", LonglensWarning)
            found = longlens.perplexity(scores, evaluator_scores=own, ngram=True)
            for name in ("ppl", "longppl", "longppl_soft", "ppl_ngram"):
                values[name] = getattr(found, name)
            values["num_key_tokens"] = found.num_key_tokens
            values["longppl_no_lcl"] = longlens.perplexity(scores, evaluator_scores=own, use_lcl=False).longppl
            for name, (alpha, beta) in THRESHOLDS.items():
                values[name] = longlens.perplexity(scores, evaluator_scores=own, alpha=alpha, beta=beta).longppl
            for other in study.families:
                if other != self.family:
                    cross = longlens.perplexity(scores, evaluator_scores=self.experiment.evaluator(other))
                    values["longppl_cross"], values["num_cross_key_tokens"] = cross.longppl, cross.num_key_tokens
            values |= self._token_baselines(scores, own)
            values |= self._self_evaluated()
        return values

    def _token_baselines(self, scores: Any, own: Any) -> dict[str, Any]:
        """Perplexity on tokens from K on, on those that the evaluator finds likely, and on random ones."""
        late, likely, keys = [], [], []
        selected = select_key_tokens(own)
        for document in self.experiment.documents:
            mine, theirs = scores.get(document.id), own.get(document.id)
            there = np.isfinite(theirs.short_logprobs) & np.isfinite(mine.long_logprobs)
            late.append(mine.long_logprobs[there])
            likely.append(mine.long_logprobs[there & (theirs.long_logprobs > BETA)])
            keys.append(int(np.isin(_indices(selected.get(document.id)), np.flatnonzero(there)).sum()))
        return {
            "ppl_from_context": _perplexity(np.concatenate(late)),
            "lcl_only": _perplexity(np.concatenate(likely)),
            "random": [
                _perplexity(_subset(late, keys, np.random.default_rng([draw, 1]))) for draw in range(self.study.subsets)
            ],
        }

    def _self_evaluated(self) -> dict[str, Any]:
        """What the variant says as its own evaluator: LongPPL and the fraction of key tokens."""
        every, wanted, context = self.experiment.documents, self.study.share_documents, self.study.context
        if not wanted:
            return {"key_share": None, "longppl_self": None}
        documents = every[:: max(1, len(every) // wanted)][:wanted]
        scores = longlens.score(documents, self.scorer, context=context, stride=context)
        found = longlens.perplexity(scores, evaluator_scores=scores)
        total = sum(int(np.isfinite(scores.get(d.id).short_logprobs).sum()) for d in documents)
        return {"key_share": (found.num_key_tokens or 0) / total, "longppl_self": found.longppl}


def _load(name: str) -> TransformersScorer:
    return load_transformers(name, Loading(dtype=DTYPE))


def _indices(keys: KeyTokens) -> npt.NDArray[np.int64]:
    assert keys.token_indices is not None  # of scores, not of a file
    return keys.token_indices


def _perplexity(logprobs: npt.NDArray[np.float32]) -> float | None:
    return float(np.exp(-logprobs.mean(dtype=np.float64))) if logprobs.size else None


def _subset(
    parts: Sequence[npt.NDArray[np.float32]], counts: Sequence[int], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """As many values of each document as it has key tokens."""
    return np.concatenate(
        [rng.choice(part, min(n, len(part)), replace=False) for part, n in zip(parts, counts, strict=True)]
    )


def summarize(study: CorrelationStudy, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Correlations within each family, and over all variants after both sides were standardized within families.

    Perplexities are correlated by their logarithms, so that differences are nats; key-token share as it is.

    Returns:
        ``variants`` (each with ``metrics`` and ``tasks``), ``within`` (by family) and ``pooled``: what
        `correlation.CorrelationTable.to_json` says; ``random``: for each average, the correlations of the random
        subsets; ``overview``: for each metric, on how many tasks its pooled correlation is what; ``tasks``: how
        scores of each task spread over the variants, percent; ``agreement``: the median of Spearman's rho over pairs
        of tasks, and the percentage of pairs below 0.5.
    """
    families = [row["family"] for row in rows]
    names = [f"{row['family']} {row['variant']}" for row in rows]
    metrics = {name: [_logarithm(row["metrics"].get(name), name) for row in rows] for name in METRICS}
    metrics = {name: column for name, column in metrics.items() if any(value is not None for value in column)}
    random = [[_logarithm(row["metrics"]["random"][draw], "ppl") for row in rows] for draw in range(study.subsets)]
    scores: dict[str, list[float | None]] = {}
    for task in study.tasks:
        for kind in ("choice", "exact"):
            scores[f"{task} {kind}"] = [row["tasks"][task][kind] for row in rows]
    kept = {name: values for name, values in scores.items() if all(value is not None for value in values)}
    for kind in ("choice", "exact"):
        parts = [values for name, values in kept.items() if name.endswith(kind)]
        if parts:
            kept[f"average {kind}"] = [statistics.fmean(column) for column in zip(*parts, strict=True)]
    within = {}
    for family in study.families:
        here = [place for place, name in enumerate(families) if name == family]
        if len(here) > 2:
            within[family] = correlate_table(
                {name: [values[place] for place in here] for name, values in metrics.items()},
                {name: [values[place] for place in here] for name, values in kept.items()},
                models=[names[place] for place in here],
            ).to_json()
    standard = partial(_standardise, families=families)
    pooled = correlate_table(
        {name: standard(values) for name, values in metrics.items()},
        {name: standard(values) for name, values in kept.items()},
        models=names,
        families=families,
    ).to_json()
    draws = {}
    for name in (name for name in kept if name.startswith("average ")):
        found = [_pearson(standard(column), standard(kept[name])) for column in random]
        draws[name] = sorted(r for r in found if r is not None)
    return {
        "variants": [dict(row) for row in rows],
        "within": within,
        "pooled": pooled,
        "random": draws,
        "overview": list(_overview(pooled)),
        "tasks": list(_spread(scores)),
        "agreement": list(_agreement(pooled)),
    }


def _tasks_of(kind: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(f" {kind}") and not name.startswith("average ")]


def _overview(pooled: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Numbers of tasks: all that have an interval; those whose interval contains 0, or lies below -0.5; those with
    |r| > 0.5; those where Williams' test finds r below that of PPL (p < 0.05); and, compared with LongPPL by the own
    evaluator, those where r is within 0.1 of it, where |r| is lower, and where Williams' test confirms that.
    """
    columns = {
        kind: {name: [row[kind][name] for row in pooled["models"]] for name in pooled["models"][0][kind]}
        for kind in ("metrics", "benchmarks")
    }
    for metric, by_benchmark in pooled["metrics"].items():
        for kind in ("choice", "exact"):
            tasks = [name for name in _tasks_of(kind, by_benchmark) if by_benchmark[name]["interval"] is not None]
            intervals = [by_benchmark[name]["interval"] for name in tasks]
            tests = [found for name in tasks if (found := pooled["tests"].get(metric, {}).get(name)) is not None]
            yield {
                "metric": metric,
                "kind": kind,
                "tasks": len(tasks),
                "zero_inside": sum(low <= 0 <= high for low, high in intervals),
                "below_minus_half": sum(high < -0.5 for _, high in intervals),
                "large": sum(abs(by_benchmark[name]["pearson"]) > 0.5 for name in tasks),
                "below_ppl": sum(
                    test["p"] is not None and test["p"] < 0.05 and test["difference"] < 0 for test in tests
                ),
                **_against_longppl(columns, metric, tasks),
            }


def _against_longppl(columns: Mapping[str, Any], metric: str, tasks: Sequence[str]) -> dict[str, int]:
    near = weaker = by_test = 0
    for task in tasks:
        found = compare_dependent(
            columns["metrics"][metric], columns["metrics"]["longppl"], columns["benchmarks"][task]
        )
        if found.r is None or found.baseline_r is None:
            continue
        is_weaker = abs(found.r) < abs(found.baseline_r)
        near += abs(found.r - found.baseline_r) <= 0.1
        weaker += is_weaker
        by_test += is_weaker and found.p is not None and found.p < 0.05
    return {"near_longppl": near, "weaker": weaker, "weaker_by_test": by_test}


def _spread(scores: Mapping[str, Sequence[float | None]]) -> Iterator[dict[str, Any]]:
    for name, values in scores.items():
        column = 100 * np.array([value for value in values if value is not None])
        task, _, kind = name.rpartition(" ")
        above = 100 * float((column > 90).mean())
        yield {"task": task, "kind": kind, "mean": float(column.mean()), "sd": float(column.std()), "above_90": above}


def _agreement(pooled: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("choice", "exact"):
        names = _tasks_of(kind, pooled["agreement"])
        pairs = [pooled["agreement"][one][two]["spearman"] for one, two in itertools.combinations(names, 2)]
        found = [rho for rho in pairs if rho is not None]
        if found:
            below = 100 * sum(rho < 0.5 for rho in found) / len(found)
            yield {"kind": kind, "pairs": len(found), "median": statistics.median(found), "below_half": below}


def _logarithm(value: float | None, name: str) -> float | None:
    return value if value is None or name == "key_share" else math.log(value)


def _standardise(values: Sequence[float | None], *, families: Sequence[str]) -> list[float | None]:
    """``(x - mean) / standard deviation`` within each family; None if it does not spread."""
    found: list[float | None] = [None] * len(values)
    for family in dict.fromkeys(families):
        here = [place for place, name in enumerate(families) if name == family and values[place] is not None]
        mine = np.array([values[place] for place in here], dtype=np.float64)
        if len(here) > 1 and mine.std() > 0:
            for place, value in zip(here, (mine - mine.mean()) / mine.std(), strict=True):
                found[place] = float(value)
    return found


def _pearson(x: Sequence[float | None], y: Sequence[float | None]) -> float | None:
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    return float(np.corrcoef(np.array(pairs).T)[0, 1]) if len(pairs) > 2 else None


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Variants, and correlations with averages and tasks."""
    columns = ("PPL", "LongPPL", "LongPPL, other evaluator", "key tokens", "average choice, %", "average exact, %")
    rows = []
    for row in result["variants"]:
        metrics, tasks = row["metrics"], row["tasks"]
        means = [
            statistics.fmean([found[kind] for found in tasks.values() if found[kind] is not None] or [math.nan])
            for kind in ("choice", "exact")
        ]
        rows.append(
            (
                f"{row['family']} {row['variant']}",
                *(_number(metrics.get(name)) for name in ("ppl", "longppl", "longppl_cross")),
                f"{metrics['num_key_tokens']:,}",
                *(f"{100 * mean:.1f}" for mean in means),
            )
        )
    made = [Table(f"Variants; chance is {100 * CHANCE:.0f} % for choice:", ("variant", *columns), rows)]
    pooled = result["pooled"]
    benchmarks = list(next(iter(pooled["metrics"].values())))
    cells = []
    for metric, by_benchmark in pooled["metrics"].items():
        for benchmark in [name for name in benchmarks if name.startswith("average ")]:
            found = by_benchmark[benchmark]
            test = pooled["tests"].get(metric, {}).get(benchmark)
            inside = [result["within"].get(family, {}).get("metrics", {}) for family in result["within"]]
            cells.append(
                (
                    metric,
                    benchmark,
                    f"{_number(found['pearson'], 2)} {_interval(found['interval'])}",
                    _number(found["spearman"], 2),
                    str(found["n"]),
                    "-" if test is None else _number(test["p"], 3),
                    *(_number(part[metric][benchmark]["pearson"], 2) for part in inside),
                )
            )
    for benchmark, draws in ((name, found) for name, found in result["random"].items() if found):
        middle = f"{statistics.median(draws):.2f} [{draws[0]:.2f}, {draws[-1]:.2f}]"
        cells.append(("random subsets", benchmark, middle, "-", str(len(draws)), "-", *("-" for _ in result["within"])))
    heads = ("metric", "benchmark", "Pearson", "Spearman", "n", "p against PPL", *result["within"])
    made.append(
        Table(
            "Correlations between benchmark scores and logarithms of perplexities, standardized within families (95 % "
            "intervals over variants; Williams' test against PPL; the last columns: within each family; for random "
            "subsets, median and range):",
            heads,
            cells,
            left=2,
        )
    )
    return [*made, *_task_tables(result)]


def _task_tables(result: Mapping[str, Any]) -> list[Table]:
    """What the correlations are on single tasks, how tasks spread and agree, and where tokens gain."""
    counts = ("tasks", "zero_inside", "below_minus_half", "large", "below_ppl", "near_longppl", "weaker")
    lsd = ("above_2", "below_half")
    agreement = "; ".join(
        f"{row['kind']}: median {row['median']:.2f}, {row['below_half']:.0f} % of {row['pairs']} pairs below 0.5"
        for row in result["agreement"]
    )
    return [
        Table(
            "Single tasks: number of tasks whose interval of Pearson's r contains 0 or is below -0.5, with |r| > 0.5, "
            "on which r is below that of PPL (Williams' test, p < 0.05), and on which r is within 0.1 of that of "
            "LongPPL or |r| is lower:",
            (
                "metric",
                "score",
                "tasks",
                "0 inside",
                "below -0.5",
                "abs(r) > 0.5",
                "below PPL",
                "near LongPPL",
                "weaker",
            ),
            [(row["metric"], row["kind"], *(str(row[name]) for name in counts)) for row in result["overview"]],
            left=2,
        ),
        Table(
            f"Scores of each task over all variants, %. Spearman's rho between tasks: {agreement or 'none'}.",
            ("task", "score", "mean", "standard deviation", "variants above 90 %, %"),
            [
                (row["task"], row["kind"], *(f"{row[name]:.1f}" for name in ("mean", "sd", "above_90")))
                for row in result["tasks"]
            ],
            left=2,
        ),
        Table(
            "Tokens by long-short difference (LSD, nats) of the base models, %:",
            ("family", "kind of text", "tokens", "LSD > 2", "LSD < 0.5"),
            [
                (row["family"], row["kind"], f"{row['num_tokens']:,}", *(f"{row[name]:.1f}" for name in lsd))
                for row in result["lsd"]
            ],
            left=2,
        ),
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(both: Sequence[float] | None) -> str:
    return "" if both is None else f"[{both[0]:.2f}, {both[1]:.2f}]"


STUDY = reproduce.Study(settings=CorrelationStudy, run=run, tables=tables, read=read)
