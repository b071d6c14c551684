"""Summarizes the runs: chosen rates, means with intervals, paired differences, and rank agreement of PPL and tasks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from longlens.study.correlation import RESAMPLES, correlate_columns
from longlens.study.extension.settings import NONE, ExtensionStudy
from longlens.study.longce.summary import cells, column_differences, column_means, hierarchical_interval, over_seeds
from longlens.study.reproduce import Table

FROZEN, TRAINED = "frozen", "trained"
MINUS = ("pi", NONE)
"""Methods that others are compared with, if both are fine-tuned."""
RANKERS = ("prose_ppl", "ppl", "longppl")
AVERAGE = "average"
Points = Mapping[tuple[int, str, str, int], Mapping[str, Any]]
"""Results by factor, method, `FROZEN` or `TRAINED`, and seed."""


def choose_rates(tried: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """Returns the learning rate with the lowest mean choice NLL over development seeds, by length and method."""
    found: dict[tuple[int, str], dict[float, list[float]]] = {}
    for one in tried:
        rates = found.setdefault((one["factor"], one["method"]), {})
        rates.setdefault(one["learning_rate"], []).append(one["choice_nll"])
    return {key: min(rates, key=lambda rate: statistics.fmean(rates[rate])) for key, rates in found.items()}


def summarize(
    study: ExtensionStudy,
    points: Points,
    own: Mapping[int, Mapping[str, Any]],
    keys: Mapping[tuple[int, int], Mapping[str, Any]],
) -> dict[str, Any]:
    """Computes means, differences and rank correlations.

    Args:
        study: Settings of the experiment.
        points: Measured values (`questions.measure`).
        own: Values of each seed at the trained length.
        keys: Key tokens for each factor and seed.

    Returns:
        ``seeds``; ``chance`` of a choice; ``own``, forms at the trained length; ``starts``, one row per seed;
        ``means``, one row per factor, method and training; ``differences``, one row per factor, method and reading:
        ``training`` (fine-tuned minus frozen), ``frozen ntk`` (fine-tuned minus NTK, frozen), ``pi`` and ``none``
        (fine-tuned minus these, fine-tuned) and ``trained length`` (log PPL of prose at the extended length, and of
        short text, frozen, minus that of short text by the unextended model), whose ``metrics`` are
        ``{"mean", "low", "high", "values"}`` by name; ``ranking``, one row per factor, group of methods, perplexity
        and task, see `rank`.
    """
    resamples, seeds = study.resamples, study.seeds
    columns: dict[tuple[int, str, str], list[Mapping[str, Any]]] = {}
    for factor, method, training, _ in points:
        columns[factor, method, training] = [points[factor, method, training, seed] for seed in seeds]
    means = [
        {"factor": factor, "method": method, "training": training, "metrics": _means(column, resamples)}
        for (factor, method, training), column in columns.items()
    ]
    differences = []
    for (factor, method, training), column in columns.items():
        row = {"factor": factor, "method": method}
        if training == FROZEN:
            short = [point["short_ppl"] for point in columns[factor, NONE, FROZEN]]
            longer = [float(np.log(point["prose_ppl"] / ppl)) for point, ppl in zip(column, short, strict=True)]
            shorter = [float(np.log(point["short_ppl"] / ppl)) for point, ppl in zip(column, short, strict=True)]
            metrics = {"prose_ppl": over_seeds(longer), "short_ppl": over_seeds(shorter)}
            differences.append({**row, "reading": "trained length", "metrics": metrics})
            continue
        others = {"training": (factor, method, FROZEN), "frozen ntk": (factor, "ntk", FROZEN)}
        others |= {name: (factor, name, TRAINED) for name in MINUS if name != method}
        for reading, other in others.items():
            if other in columns:
                metrics = column_differences(column, columns[other], resamples)
                metrics |= {f"{AVERAGE}.choice": _average(column, columns[other], resamples)}
                differences.append({**row, "reading": reading, "metrics": metrics})
    forms = own[seeds[0]]["forms"]
    return {
        "seeds": list(seeds),
        "chance": 1 / study.small.words.values,
        "own": {
            f"{form}.choice": hierarchical_interval(
                np.array([own[seed]["forms"][form]["questions"]["choice"] for seed in seeds], dtype=np.float64),
                resamples,
            )
            for form in forms
        },
        "starts": [
            {
                "seed": seed,
                "parameters": own[seed]["parameters"],
                "text": own[seed]["text"],
                "keys": {
                    str(factor): {name: value for name, value in found.items() if name != "keys"}
                    for (factor, of), found in keys.items()
                    if of == seed
                },
            }
            for seed in seeds
        ],
        "means": means,
        "differences": differences,
        "ranking": rank(columns, resamples),
    }


def _means(column: Sequence[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
    return column_means(column, resamples) | {f"{AVERAGE}.choice": _average(column, None, resamples)}


def _average(
    column: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]] | None, resamples: int
) -> dict[str, Any]:
    """Returns the share of right choices, averaged over forms with equal weight, optionally minus another column."""
    values = _choices(column) if other is None else _choices(column) - _choices(other)
    return hierarchical_interval(values, resamples)


def _choices(column: Sequence[Mapping[str, Any]]) -> Any:
    """``(seeds, questions)``: question i averaged over forms; questions are repeated until forms are equally long."""
    forms = [np.array([point["forms"][form]["questions"]["choice"] for point in column]) for form in column[0]["forms"]]
    length = int(np.lcm.reduce([values.shape[1] for values in forms]))
    return np.mean([np.repeat(values, length // values.shape[1], axis=1) for values in forms], axis=0)


def rank(
    columns: Mapping[tuple[int, str, str], Sequence[Mapping[str, Any]]], resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """Computes whether a perplexity ranks methods in the same order as tasks.

    Args:
        columns: By factor, method and training, the measured values of each seed.
        resamples: Number of resamples of the bootstrap over methods.

    Returns:
        Rows with ``factor``, ``among`` (`FROZEN`, `TRAINED` or ``all``), ``metric``, ``task``, ``n`` methods,
        ``spearman`` of means over seeds, ``low`` and ``high`` (95 %, bootstrap over methods) and ``p`` (permutation);
        ``over_seeds``: Spearman's rho of each seed and its mean with Student's t; the ``best_by_metric`` and
        ``best_by_task``; and ``alike``, 1 if the interval is below 0 and both have the same best method, else 0. -1
        means the same ranking, because a low perplexity is good.
    """
    rows = []
    for factor in dict.fromkeys(key[0] for key in columns):
        for among in (FROZEN, TRAINED, "all"):
            chosen = {
                key[1:]: column for key, column in columns.items() if key[0] == factor and among in (key[2], "all")
            }
            if len(chosen) < 3:
                continue
            names = [" ".join(key) for key in chosen]
            forms = list(next(iter(chosen.values()))[0]["forms"])
            for metric in RANKERS:
                perplexity = np.array([[_number(p[metric]) for p in column] for column in chosen.values()])
                for task in (*forms, AVERAGE):
                    score = np.array([[_score(point, task) for point in column] for column in chosen.values()])
                    row = {"factor": factor, "among": among, "metric": metric, "task": task, "n": len(names)}
                    rows.append(row | _ranked(np.log(perplexity), score, names, resamples))
    return rows


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _score(point: Mapping[str, Any], task: str) -> float:
    forms = point["forms"]
    return statistics.fmean(form["choice"] for form in forms.values()) if task == AVERAGE else forms[task]["choice"]


def _ranked(perplexity: Any, score: Any, names: Sequence[str], resamples: int) -> dict[str, Any]:
    """Compares the rankings of ``(methods, seeds)`` values."""
    x, y = perplexity.mean(axis=1), score.mean(axis=1)
    found = correlate_columns(x, y, resamples=resamples)
    low, high = found.spearman_interval or (None, None)
    seeds = [_spearman(a, b) for a, b in zip(perplexity.T, score.T, strict=True)]
    best = names[int(np.nanargmin(x))] if np.isfinite(x).any() else None, names[int(y.argmax())]
    return {
        "spearman": found.spearman,
        "low": low,
        "high": high,
        "p": found.spearman_p,
        "over_seeds": over_seeds(seeds),
        "best_by_metric": best[0],
        "best_by_task": best[1],
        "alike": int(high is not None and high < 0 and best[0] == best[1]),
    }


def _spearman(x: Any, y: Any) -> float | None:
    if not (np.isfinite(x).all() and np.ptp(x) and np.ptp(y)):
        return None
    return float(spearmanr(x, y).statistic)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Formats a result as tables: small models, methods, differences, rates, rankings, and the published model."""
    factors = list(dict.fromkeys(row["factor"] for row in result["means"]))
    found = [_starts(result, factors), _means_table(result)]
    found += [
        _differences(result, "training", "Fine-tuned minus frozen, same seeds and questions"),
        _differences(result, "pi", "Fine-tuned minus fine-tuned PI, same seeds and questions"),
        _differences(result, NONE, "Fine-tuned minus fine-tuned without extension, same seeds and questions"),
        _harm(result),
        _ranking(result),
        _rates(result),
    ]
    if result["pretrained"] is not None:
        found += [_blocks(result["pretrained"]), _tasks(result["pretrained"])]
    return found


def _forms(result: Mapping[str, Any]) -> list[str]:
    return [name.removesuffix(".choice") for name in result["own"]]


def _percent(found: Mapping[str, Any]) -> str:
    return cells({"x": found}, [("x", "", 100.0, 1)])[0]


def _starts(result: Mapping[str, Any], factors: Sequence[int]) -> Table:
    forms = _forms(result)
    rows = [
        (
            str(start["seed"]),
            *(f"{100 * result['own'][f'{form}.choice']['values'][place]:.1f}" for form in forms),
            *(
                f"{found['num_key_tokens']:,} ({found['num_key_answers']:,}) of {found['num_tokens']:,}"
                for found in (start["keys"][str(factor)] for factor in factors)
            ),
        )
        for place, start in enumerate(result["starts"])
    ]
    rows.append(("all", *(_percent(result["own"][f"{form}.choice"]) for form in forms), *("" for _ in factors)))
    return Table(
        f"Small models ({result['starts'][0]['parameters']:,} parameters) at their trained length: "
        f"choice accuracy, % (chance {100 * result['chance']:.1f} %); the evaluator's key tokens at each length, "
        "with answers among them in parentheses:",
        ("seed", *forms, *(f"key tokens, {factor}x" for factor in factors)),
        rows,
    )


def _means_table(result: Mapping[str, Any]) -> Table:
    columns = [(f"{form}.choice", f"{form}, %", 100.0, 1) for form in (*_forms(result), AVERAGE)]
    columns += [
        ("prose_ppl", "PPL of prose", 1.0, 1),
        ("longppl", "LongPPL", 1.0, 2),
        ("short_ppl", "PPL of short text", 1.0, 1),
    ]
    rows = [
        (f"{row['factor']}x", row["training"], row["method"], *cells(row["metrics"], columns))
        for row in result["means"]
    ]
    return Table(
        f"Choice accuracy (chance {100 * result['chance']:.1f} %) and perplexities, means over {len(result['seeds'])} "
        "seeds [95 % interval: bootstrap of seeds and questions; for perplexities, Student's t over seeds]:",
        ("length", "training", "method", *(head for _, head, _, _ in columns)),
        sorted(rows, key=lambda row: (row[0], row[1])),
        left=3,
    )


def _differences(result: Mapping[str, Any], reading: str, title: str) -> Table:
    columns = [(f"{form}.choice", f"{form}, points", 100.0, 1) for form in (*_forms(result), AVERAGE)]
    columns += [("prose_ppl", "log PPL of prose", 1.0, 3), ("longppl", "log LongPPL", 1.0, 3)]
    rows = [
        (f"{row['factor']}x", row["method"], *cells(row["metrics"], columns, "+"))
        for row in result["differences"]
        if row["reading"] == reading
    ]
    heads = ("length", "method", *(head for _, head, _, _ in columns))
    return Table(f"{title} (log PPL in nats):", heads, rows, left=2)


def _harm(result: Mapping[str, Any]) -> Table:
    columns = [("prose_ppl", "at the extended length", 1.0, 3), ("short_ppl", "of short text", 1.0, 3)]
    rows = [
        (f"{row['factor']}x", row["method"], *cells(row["metrics"], columns, "+"))
        for row in result["differences"]
        if row["reading"] == "trained length"
    ]
    heads = ("length", "method", *(head for _, head, _, _ in columns))
    title = "Frozen: log PPL of prose minus log PPL of short text under the unextended model, nats:"
    return Table(title, heads, rows, left=2)


def _ranking(result: Mapping[str, Any]) -> Table:
    rows = []
    for row in result["ranking"]:
        if row["task"] == AVERAGE:
            whole = {"mean": row["spearman"], "low": row["low"], "high": row["high"]}
            both = cells({"x": whole, "s": row["over_seeds"]}, [("x", "", 1.0, 2), ("s", "", 1.0, 2)], "+")
            p = "-" if row["p"] is None else f"{row['p']:.3f}"
            best = (str(row["best_by_metric"]), row["best_by_task"])
            rows.append((f"{row['factor']}x", row["among"], row["metric"], str(row["n"]), *both, p, *best))
    return Table(
        "Does perplexity rank the methods as the mean of the tasks does? Spearman's rho; -1 means the same ranking "
        "[95 % interval: bootstrap over methods; for seeds, Student's t]:",
        ("length", "among", "metric", "methods", "rho", "rho per seed", "p", "lowest perplexity", "best at tasks"),
        rows,
        left=3,
    )


def _rates(result: Mapping[str, Any]) -> Table:
    found: dict[tuple[int, str], dict[float, list[float]]] = {}
    for one in result["tuning"]:
        rates = found.setdefault((one["factor"], one["method"]), {})
        rates.setdefault(one["learning_rate"], []).append(one["choice_nll"])
    every = sorted({rate for rates in found.values() for rate in rates})
    chosen = {(one["factor"], one["method"]): one["learning_rate"] for one in result["rates"]}
    rows = [
        (
            f"{key[0]}x",
            key[1],
            *(f"{statistics.fmean(rates[rate]):.3f}" for rate in every),
            f"{chosen[key]:g}" + (" (edge)" if chosen[key] in (every[0], every[-1]) else ""),
        )
        for key, rates in found.items()
    ]
    return Table(
        "Choice NLL of the development seeds by learning rate; each method uses the rate with the lowest:",
        ("length", "method", *(f"{rate:g}" for rate in every), "selected"),
        rows,
        left=2,
    )


def _blocks(part: Mapping[str, Any]) -> Table:
    methods = list(dict.fromkeys(row["method"] for row in part["nll"]))
    size, rows = len(part["nll"][0]["blocks"]), []
    documents = list(dict.fromkeys(row["document"] for row in part["nll"]))
    for method in methods:
        mine = np.array([row["blocks"] for row in part["nll"] if row["method"] == method])
        rise = next(row for row in part["rise"] if row["method"] == method)
        last = cells({"x": rise}, [("x", "", 1.0, 2)], "+")[0]
        rows.append((method, *(f"{value:.2f}" for value in mine.mean(axis=0)), last, f"{np.exp(mine.mean()):.2f}"))
    ends = np.array([row["blocks"] for row in part["own"]])
    lead = [""] * (size - ends.shape[1])
    rows.append(("last tokens only", *lead, *(f"{value:.2f}" for value in ends.mean(axis=0)), "", ""))
    return Table(
        f"{part['model']}, frozen: NLL of {size} equal parts of a document, nats per token, mean over "
        f"{len(documents)} documents ({', '.join(documents)}); last row: only the last {part['own'][0]['length']:,} "
        "tokens:",
        ("method", *(str(place + 1) for place in range(size)), "last part, minus last row", "PPL"),
        rows,
    )


def _tasks(part: Mapping[str, Any]) -> Table:
    rows = [
        (
            row["task"],
            row["method"],
            f"{row['num_tokens']:,.0f}",
            f"{row['right']} of {row['n']}",
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f}",
            f"{row['nll']:.2f}",
        )
        for row in sorted(part["tasks"], key=lambda row: row["task"])
    ]
    return Table(
        f"{part['model']}, frozen: choices among ten (chance {100 * part['chance']:.0f} %), with Wilson intervals that "
        "treat questions on one text as independent, and the NLL of the whole right answer:",
        ("task", "method", "tokens", "right", "95 %", "NLL of the answer"),
        rows,
        left=2,
    )
