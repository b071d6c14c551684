"""Classifies answer tokens by LSD and LCL (the paper's figures 3 and 4(b)).

A rule classifies a token as an answer token if ``LSD > alpha``, or if ``LSD > alpha and LCL > beta``. Tokens of a
sample are similar, so all intervals use the bootstrap over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.metrics.uncertainty import Doubles, Interval
from longlens.study.reproduce import Table

if TYPE_CHECKING:
    from longlens.study.answers.run import AnswersSettings

POPULATIONS = {
    "response": "response",
    "beyond": "response, line beyond the short context",
    "all": "prompt and response",
}
"""Populations of tokens. ``response`` is the paper's (figure 3: "the tokens are from the standard response");
``beyond`` excludes samples whose line is in the short context, where no answer token needs the long context."""
GRID = 0.25
"""Step in nats of thresholds that are tried on development samples: alpha from 0 to 8, beta from -8 to 0, or none."""
RESAMPLES = 1000
ROC_POINTS = 100
HIGH = 0.5
"""LSD above which a token counts as confused with answers (figure 3(b))."""
Bools = npt.NDArray[np.bool_]
Samples = Sequence[Mapping[str, Any]]


class Tokens(NamedTuple):
    """Arrays ``(n,)`` over all tokens that have both scores.

    Attributes:
        lsd: Long-short difference, nats.
        lcl: Long-context likelihood, nats.
        is_answer: Whether the token belongs to the answer.
        sample: Index of its sample, from 0.
        num_samples: Number of samples.
    """

    lsd: Doubles
    lcl: Doubles
    is_answer: Bools
    sample: npt.NDArray[np.intp]
    num_samples: int


def collect(samples: Samples, population: str) -> Tokens:
    """Returns the tokens of samples; for the population ``all``, of samples whose prompt has short-context scores."""
    parts = []
    kept = [sample for sample in samples if population != "beyond" or not sample["in_short"]]
    if population == "all":
        kept = [sample for sample in kept if sample["record"] and sample["record"]["short"] is not None]
    for number, sample in enumerate(kept):
        sides = [sample["response"], *([sample["record"]] if population == "all" else [])]
        for side in sides:
            long, short = (np.array(side[name], dtype=np.float64) for name in ("long", "short"))
            answer = np.array(side.get("is_answer", [False] * len(long)), dtype=bool)
            there = np.isfinite(long) & np.isfinite(short)
            parts.append((long[there] - short[there], long[there], answer[there], np.full(there.sum(), number)))
    if not parts:
        return Tokens(np.zeros(0), np.zeros(0), np.zeros(0, bool), np.zeros(0, np.intp), 0)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Tokens(columns[0], columns[1], columns[2], columns[3].astype(np.intp), len(kept))


def classify(settings: AnswersSettings, by_lines: Mapping[int, Samples], development: Samples) -> dict[str, Any]:
    """How well answer tokens are told from the rest.

    Args:
        settings: Settings of the experiment.
        by_lines: Test samples by number of lines.
        development: Samples on which thresholds are chosen.

    Returns:
        Rows for each population and number of lines (None: all of them together). ``classification``: of each rule
        ``alpha``, ``beta``, ``chosen`` (on development samples), ``balanced_accuracy`` with ``interval``, ``accuracy``
        and ``majority`` (that of always saying no), ``sensitivity``, ``specificity`` (percent). ``auc`` of LSD and of
        LCL alone, percent, with intervals. ``separation``: shares of answer tokens with LSD above alpha and of others
        with LSD below 0.5; of tokens with an LSD above 0.5, the median LCL of answers less that of others, with its
        interval. ``roc``: points ``[false positive rate, true positive rate]`` in percent, LSD alone and with LCL.
    """
    made: dict[str, list[dict[str, Any]]] = {"classification": [], "auc": [], "separation": [], "roc": []}
    for population in POPULATIONS:
        rules = list(_rules(settings, collect(development, population)))
        places: list[tuple[int | None, Samples]] = [(lines, samples) for lines, samples in by_lines.items()]
        places = places if population != "all" else [(settings.classified_lines, by_lines[settings.classified_lines])]
        if population != "all":
            places.append((None, [sample for samples in by_lines.values() for sample in samples]))
        for lines, samples in places:
            tokens = collect(samples, population)
            if not tokens.is_answer.any() or tokens.is_answer.all():
                continue
            counts = np.random.default_rng(0).multinomial(
                tokens.num_samples, np.full(tokens.num_samples, 1 / tokens.num_samples), size=RESAMPLES
            )
            about = {
                "population": population,
                "lines": lines,
                "num_samples": tokens.num_samples,
                "num_answer": int(tokens.is_answer.sum()),
                "num_other": int((~tokens.is_answer).sum()),
            }
            for name, alpha, beta, chosen in rules:
                row = {"rule": name, "alpha": alpha, "beta": beta, "chosen": chosen}
                made["classification"].append({**about, **row, **_quality(tokens, alpha, beta, counts)})
            for name, values in (("lsd", tokens.lsd), ("lcl", tokens.lcl)):
                area, interval = area_under_curve(values, tokens, counts)
                made["auc"].append({**about, "score": name, "auc": area, "interval": interval})
            made["separation"].append({**about, **_separation(tokens, settings.alpha, counts)})
            if lines in (None, settings.classified_lines):
                made["roc"] += [
                    {**about, "rule": name, "beta": beta, "points": _roc(tokens, beta)}
                    for name, beta in (("lsd", None), ("lsd+lcl", settings.beta))
                ]
    return made


def _rules(settings: AnswersSettings, development: Tokens) -> Iterator[tuple[str, float, float | None, bool]]:
    yield "lsd", settings.alpha, None, False
    yield "lsd+lcl", settings.alpha, settings.beta, False
    if not development.is_answer.any():
        return
    alphas = np.arange(0, 8 + GRID / 2, GRID).tolist()
    betas: list[float | None] = [None, *np.arange(-8, GRID / 2, GRID).tolist()]
    for name, some in (("lsd", [None]), ("lsd+lcl", betas)):
        pairs = [(alpha, beta) for beta in some for alpha in alphas]
        best = max(pairs, key=lambda pair: balanced_accuracy(development, *pair))  # the first of equal ones
        yield name, *best, True


def said(tokens: Tokens, alpha: float, beta: float | None) -> Bools:
    """Returns which tokens a rule classifies as answer tokens."""
    found: Bools = tokens.lsd > alpha
    return found if beta is None else found & (tokens.lcl > beta)


def balanced_accuracy(tokens: Tokens, alpha: float, beta: float | None) -> float:
    """Mean of sensitivity and specificity; 0.5 is chance, whatever the numbers of tokens."""
    found = said(tokens, alpha, beta)
    return float((found[tokens.is_answer].mean() + (~found[~tokens.is_answer]).mean()) / 2)


def _quality(tokens: Tokens, alpha: float, beta: float | None, counts: Any) -> dict[str, Any]:
    found, answer = said(tokens, alpha, beta), tokens.is_answer

    def by_sample(which: Bools) -> Doubles:
        found: Doubles = np.bincount(tokens.sample, weights=which, minlength=tokens.num_samples).astype(np.float64)
        return found

    hits, answers, passed, others = (by_sample(which) for which in (found & answer, answer, ~found & ~answer, ~answer))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = 50 * ((counts @ hits) / (counts @ answers) + (counts @ passed) / (counts @ others))
    sensitivity, specificity = hits.sum() / answers.sum(), passed.sum() / others.sum()
    return {
        "balanced_accuracy": 50 * float(sensitivity + specificity),
        "interval": _percentiles(drawn),
        "accuracy": 100 * float((found == answer).mean()),
        "majority": 100 * float(max(answer.mean(), 1 - answer.mean())),
        "sensitivity": 100 * float(sensitivity),
        "specificity": 100 * float(specificity),
    }


def area_under_curve(values: Doubles, tokens: Tokens, counts: Any) -> tuple[float, Interval | None]:
    """Returns the percentage of answer/other token pairs in which the answer's value is higher; ties count half."""
    _, place = np.unique(values, return_inverse=True)
    size = int(place.max()) + 1

    def area(weights: Doubles) -> float:
        answers = np.bincount(place, weights=weights * tokens.is_answer, minlength=size)
        others = np.bincount(place, weights=weights * ~tokens.is_answer, minlength=size)
        below = np.cumsum(others) - others / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(100 * (answers @ below) / (answers.sum() * others.sum()))

    drawn = np.array([area(row[tokens.sample].astype(np.float64)) for row in counts])
    return area(np.ones(len(values))), _percentiles(drawn)


def _separation(tokens: Tokens, alpha: float, counts: Any) -> dict[str, Any]:
    high, answer = tokens.lsd > HIGH, tokens.is_answer

    def medians(which: npt.NDArray[np.intp]) -> float:
        chosen = high[which]
        parts = (tokens.lcl[which][chosen & answer[which]], tokens.lcl[which][chosen & ~answer[which]])
        return float(np.median(parts[0]) - np.median(parts[1])) if all(map(len, parts)) else float("nan")

    places = np.arange(len(tokens.lsd))
    drawn = np.array([medians(places.repeat(row[tokens.sample])) for row in counts])
    difference = medians(places)
    return {
        "answer_above_alpha": 100 * float((tokens.lsd[answer] > alpha).mean()),
        "other_below_half": 100 * float((tokens.lsd[~answer] < HIGH).mean()),
        "num_high_other": int((high & ~answer).sum()),
        "lcl_difference": difference if np.isfinite(difference) else None,
        "lcl_interval": _percentiles(drawn),
    }


def _percentiles(values: Doubles) -> Interval | None:
    there = values[np.isfinite(values)]
    if len(there) < len(values) / 2:
        return None
    low, high = np.percentile(there, [2.5, 97.5])
    return float(low), float(high)


def _roc(tokens: Tokens, beta: float | None) -> list[list[float]]:
    """Returns points of the rule over all alpha, from no token to all tokens that it can select."""
    takes = np.ones(len(tokens.lsd), dtype=bool) if beta is None else tokens.lcl > beta
    alphas = np.quantile(tokens.lsd, np.linspace(1, 0, ROC_POINTS))
    points = [[0.0, 0.0]]
    for alpha in [*alphas, -np.inf]:
        found = (tokens.lsd > alpha) & takes
        points.append([100 * float(found[~tokens.is_answer].mean()), 100 * float(found[tokens.is_answer].mean())])
    return points


def tables(result: Mapping[str, Any], cell: Callable[[float | None, Any, str], str]) -> list[Table]:
    """Tables of rules and of the areas under their curves: of all lengths together, and of the prompt's tokens."""
    shown = [row for row in result["classification"] if row["lines"] is None or row["population"] == "all"]
    areas = [row for row in result["auc"] if row["lines"] is None or row["population"] == "all"]
    parts = [row for row in result["separation"] if row["lines"] is None or row["population"] == "all"]
    names = {"lsd": "LSD", "lsd+lcl": "LSD and LCL", "lcl": "LCL"}
    settings = result["settings"]

    def head(row: Mapping[str, Any]) -> list[str]:
        return [row["model"], POPULATIONS[row["population"]]]

    return [
        Table(
            f"Classification of answer tokens, K = {settings['context']}, d = {settings['stride']}: percent, with "
            "95 % intervals over samples. Chance is 50 % for balanced accuracy; `always no` is the accuracy of a rule "
            "that selects no token. Thresholds are the paper's, or selected on development samples.",
            [
                *(
                    "model",
                    "tokens",
                    "rule",
                    "thresholds",
                    "balanced accuracy",
                    "sensitivity",
                    "specificity",
                    "accuracy",
                ),
                *("always no", "answer tokens", "others"),
            ],
            [
                [
                    *head(row),
                    names[row["rule"]],
                    f"{row['alpha']:g}"
                    + (
                        ""
                        if row["rule"] == "lsd"
                        else f", {'none' if row['beta'] is None else format(row['beta'], 'g')}"
                    )
                    + (" (selected)" if row["chosen"] else ""),
                    cell(row["balanced_accuracy"], row["interval"], ".1f"),
                    *(f"{row[name]:.1f}" for name in ("sensitivity", "specificity", "accuracy", "majority")),
                    *(f"{row[name]:,}" for name in ("num_answer", "num_other")),
                ]
                for row in shown
            ],
            4,
        ),
        Table(
            "Area under the ROC curve of each score, percent; chance is 50.",
            ["model", "tokens", "score", "area"],
            [[*head(row), names[row["score"]], cell(row["auc"], row["interval"], ".1f")] for row in areas],
            3,
        ),
        Table(
            f"Figure 3: answer tokens with LSD above {settings['alpha']:g} and others with LSD below {HIGH:g}, "
            f"percent; median LCL of answer tokens minus that of others, among tokens with LSD above {HIGH:g}, nats.",
            ["model", "tokens", "answers above", "others below", "difference of LCL"],
            [
                [
                    *head(row),
                    f"{row['answer_above_alpha']:.1f}",
                    f"{row['other_below_half']:.1f}",
                    cell(row["lcl_difference"], row["lcl_interval"], ".2f"),
                ]
                for row in parts
            ],
            2,
        ),
    ]
