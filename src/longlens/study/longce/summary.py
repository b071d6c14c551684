"""Summarizes the runs of a study: chosen rates, means over seeds, and paired differences, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.metrics.uncertainty import mean_interval, quantile
from longlens.study.longce.settings import Study
from longlens.study.reproduce import Table

Doubles = npt.NDArray[np.float64]
PERPLEXITIES = ("ppl", "prose_ppl", "longppl", "short_ppl")
"""Metrics without a value per question: means over seeds, with Student's t."""
SCORES = ("accuracy", "choice")
ANSWERS = (*SCORES, "answer_nll", "choice_nll")
"""Metrics of each form with a value per question; the first two are from 0 to 1."""
BEFORE = "not trained"
_SEED = 20250101
"""Seed of the bootstrap."""


def equal_time_step(step: int, ratio: float) -> int:
    """Returns the step of CE at the same time as ``step`` of LongCE, whose steps take ``ratio`` times as long."""
    return max(1, round(step * ratio))


def choose_rates(tried: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns the learning rate of each method and arm with the lowest answer NLL, averaged over development seeds.

    Args:
        tried: Development runs, with ``method``, ``arm``, ``learning_rate`` and ``answer_nll``.
    """
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for run in tried:
        rates = found.setdefault((run["method"], run["arm"]), {})
        rates.setdefault(run["learning_rate"], []).append(run["answer_nll"])
    chosen: dict[str, dict[str, float]] = {}
    for (method, arm), rates in found.items():
        chosen.setdefault(method, {})[arm] = min(rates, key=lambda rate: float(np.mean(rates[rate])))
    return chosen


def hierarchical_interval(values: Doubles, resamples: int) -> dict[str, Any]:
    """95 % interval of the mean of ``(seeds, questions)`` values, by a bootstrap of seeds and then of their questions.

    Each resample draws the same number of seeds, with replacement, and for each the same number of its questions::

        means = [mean(values[s, q]) for each resample]
        low, high = percentiles 2.5 and 97.5 of  mean + (means - mean) * sqrt(S / (S - 1)) * t / z

    The factor compensates for percentile intervals that are too narrow for few seeds: t is Student's quantile with
    S - 1 degrees of freedom, z the normal one.

    Args:
        values: One value per question; never NaN.
        resamples: Number of resamples.

    Returns:
        ``mean``, ``low``, ``high`` (None for one seed) and ``values``, the means of the seeds.
    """
    seeds, count = values.shape
    mean = float(values.mean())
    found = {"mean": mean, "low": None, "high": None, "values": values.mean(axis=1).tolist()}
    if seeds < 2:
        return found
    rng = np.random.default_rng(_SEED)
    means = np.empty(resamples)
    for index in range(resamples):
        drawn = rng.integers(0, seeds, (seeds, 1))
        means[index] = values[drawn, rng.integers(0, count, (seeds, count))].mean()
    wider = np.sqrt(seeds / (seeds - 1)) * quantile(seeds - 1) / quantile(np.inf)
    low, high = np.percentile(mean + (means - mean) * wider, [2.5, 97.5])
    return found | {"low": float(low), "high": float(high)}


def summarize(
    study: Study,
    runs: Sequence[Mapping[str, Any]],
    timing: Mapping[str, Any],
    starts: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """Computes means and differences of all checkpoints.

    Args:
        study: Settings of the study.
        runs: All runs of its seeds.
        timing: By method and short context, with ``ratio``.
        starts: State of each seed before its arms are trained.

    Returns:
        ``seeds`` and ``chance`` (of a choice); ``starts``, one row per seed: its text, base model and evaluator;
        ``means``, one row per method, arm and step (``method``, ``arm``, ``step``, ``seconds``, ``metrics``), also
        before training; ``differences``, one row per method, arm and ``reading`` at the last checkpoint:
        ``equal steps`` and ``equal time`` of an arm minus CE of the same seed (``other_step``, CE's), ``training``,
        minus the extended model before training, and ``default windows``, of LongCE with another K or d minus LongCE
        with the defaults, with ``fifth_of_gain``, by metric a fifth of what LongCE gains over CE; ``weights``, one row
        per method and arm. ``metrics`` are
        ``{"mean", "low", "high", "values"}`` by name, ``FORM.accuracy`` and so on (`ANSWERS`) for each
        form of questions; differences of perplexities are of their logarithms, nats.
    """
    points: dict[tuple[str, str, int, int], Mapping[str, Any]] = {}
    for run in runs:
        for point in run["points"]:
            points[run["method"], run["arm"], run["seed"], point["step"]] = point
    for method in study.extensions:
        for seed in study.seeds:
            points[method, BEFORE, seed, 0] = starts[seed]["start"][method]

    def column(method: str, arm: str, step: int) -> list[Mapping[str, Any]]:
        return [points[method, arm, seed, step] for seed in study.seeds]

    means, differences, weights = [], [], []
    last = study.training.steps
    for method in study.extensions:
        arms = list(dict.fromkeys(key[1] for key in points if key[0] == method))
        for arm in sorted(arms, key=lambda arm: arm != BEFORE):
            seconds = seconds_of(timing[method], arm)
            for step in sorted({key[3] for key in points if key[:3] == (method, arm, study.seeds[0])}):
                row = {"method": method, "arm": arm, "step": step, "seconds": round(seconds * step, 3)}
                means.append({**row, "metrics": column_means(column(method, arm, step), study.resamples)})
            if arm == BEFORE:
                continue
            mine = [run["weights"] for run in runs if (run["method"], run["arm"]) == (method, arm)]
            weights.append({"method": method, "arm": arm} | {name: _mean([w[name] for w in mine]) for name in mine[0]})
            ratio = timing[method].get(arm, timing[method]["longce"])["ratio"]
            readings = {"training": (BEFORE, 0)}
            if arm != "ce":
                readings |= {"equal steps": ("ce", last)}
                if has_short_pass(arm):
                    readings |= {"equal time": ("ce", equal_time_step(last, ratio))}
                if arm in (window.name for window in study.windows):
                    readings |= {"default windows": ("longce", last)}
            here = column(method, arm, last)
            for reading, (other, other_step) in readings.items():
                theirs = column(method, other, other_step)
                row = {"method": method, "arm": arm, "reading": reading, "step": last, "other_step": other_step}
                if reading == "default windows":
                    gains = column_differences(theirs, column(method, "ce", last), 1)
                    row["fifth_of_gain"] = {name: _fifth(gain["mean"]) for name, gain in gains.items()}
                differences.append(row | {"metrics": column_differences(here, theirs, study.resamples)})
    kept = ("seed", "documents", "text", "base", "evaluator")
    return {
        "seeds": list(study.seeds),
        "chance": 1 / study.words.values,
        "starts": [{name: start[name] for name in kept} for start in starts.values()],
        "means": means,
        "differences": differences,
        "weights": weights,
    }


def _fifth(gain: float | None) -> float | None:
    return None if gain is None else abs(gain) / 5


def has_short_pass(arm: str) -> bool:
    """Returns whether a step of an arm takes longer than a step of CE."""
    return arm not in ("ce", "exact", "oracle", BEFORE)


def seconds_of(timing: Mapping[str, Any], arm: str) -> float:
    """Seconds per step of an arm: those of a CE step, times the ratio, which was measured on alternating steps."""
    ratio = timing.get(arm, timing["longce"])["ratio"] if has_short_pass(arm) else 1.0
    return float(timing["longce"]["ce_seconds"] * ratio)


def column_means(column: Sequence[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
    """Computes metrics of one checkpoint over the seeds, ``{"mean", "low", "high", "values"}`` by name.

    Args:
        column: Measured values (`questions.measure`), one per seed.
        resamples: Number of resamples of the bootstrap.
    """
    found = {
        f"{form}.{name}": hierarchical_interval(_questions(column, form, name), resamples)
        for form in column[0]["forms"]
        for name in ANSWERS
    }
    for name, score in found.items():
        if name.endswith(SCORES) and score["low"] is not None:
            score["low"], score["high"] = max(0.0, score["low"]), min(1.0, score["high"])
    return found | {name: over_seeds([point.get(name) for point in column]) for name in PERPLEXITIES}


def column_differences(
    mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], resamples: int
) -> dict[str, Any]:
    """Computes metrics of one checkpoint minus those of another, by seed and question; log PPL in nats."""
    found = {}
    for form in mine[0]["forms"]:
        for name in ANSWERS:
            gaps = _questions(mine, form, name) - _questions(theirs, form, name)
            found[f"{form}.{name}"] = hierarchical_interval(gaps, resamples)
    for name in PERPLEXITIES:
        pairs = [(a.get(name), b.get(name)) for a, b in zip(mine, theirs, strict=True)]
        found[name] = over_seeds([None if a is None or b is None else float(np.log(a / b)) for a, b in pairs])
    return found


def _questions(column: Sequence[Mapping[str, Any]], form: str, name: str) -> Doubles:
    return np.array([point["forms"][form]["questions"][name] for point in column], dtype=np.float64)


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Computes mean and 95 % interval by Student's t of one value per seed; None if a seed has no value."""
    have = [value for value in values if value is not None]
    both = mean_interval(have) if len(have) == len(values) else None
    low, high = both if both is not None else (None, None)
    return {"mean": _mean(values), "low": low, "high": high, "values": list(values)}


def _mean(values: Sequence[float | None]) -> float | None:
    have = [value for value in values if value is not None]
    return float(np.mean(have)) if have and len(have) == len(values) else None


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Formats a result as tables: seeds, rates, differences from CE, differences from no training, cost, weights."""
    forms = list(dict.fromkeys(name.split(".")[0] for name in result["means"][0]["metrics"] if "." in name))
    found = [
        _starts(result, forms),
        _tuning(result),
        _means(result, forms),
        _differences(
            result, forms, ("equal steps", "equal time"), "Difference between an arm and CE, same seed and questions"
        ),
        _differences(result, forms, ("training",), "Difference between an arm and the extended model before training"),
        _curve(result, forms[0]),
        _weights(result),
    ]
    windows = _differences(
        result,
        forms,
        ("default windows",),
        "Difference between LongCE with another K or d and LongCE with the defaults",
    )
    return [*found, windows] if windows.rows else found


def _starts(result: Mapping[str, Any], forms: Sequence[str]) -> Table:
    rows = []
    for start in result["starts"]:
        base, evaluator = start["base"], start["evaluator"]
        rows.append(
            (
                f"{start['seed']} ({start['documents']})",
                f"{100 * start['text']['shared']:.1f}",
                f"{100 * start['text']['removed']:.1f}",
                *(f"{100 * base['forms'][form]['choice']:.0f}" for form in forms),
                f"{evaluator['num_key_tokens']:,} of {evaluator['num_tokens']:,}",
                f"{evaluator['num_key_answers']:,}",
            )
        )
    parameters = result["starts"][0]["base"]["parameters"]
    return Table(
        f"Seeds; each has its own base model ({parameters:,} parameters). Per form: accuracy of the base model's "
        f"choice among the values of a key at its trained length, % (chance {100 * result['chance']:.1f} %):",
        ("seed", "20-grams shared, %", "training text removed, %", *forms, "key tokens", "answers among them"),
        rows,
    )


def _tuning(result: Mapping[str, Any]) -> Table:
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for run in result["tuning"]:
        rates = found.setdefault((run["method"], run["arm"]), {})
        rates.setdefault(run["learning_rate"], []).append(run["answer_nll"])
    every = sorted({rate for rates in found.values() for rate in rates})
    rows = [
        (
            method,
            arm,
            *(f"{np.mean(rates[rate]):.3f}" for rate in every),
            f"{result['rates'][method][arm]:g}" + (" (edge)" if _at_edge(rates, result["rates"][method][arm]) else ""),
        )
        for (method, arm), rates in found.items()
    ]
    return Table(
        "Answer NLL of the development seeds by learning rate; each arm uses the rate with the lowest:",
        ("extension", "loss", *(f"{rate:g}" for rate in every), "selected"),
        rows,
        left=2,
    )


def _at_edge(rates: Mapping[float, Any], chosen: float) -> bool:
    return len(rates) > 1 and chosen in (min(rates), max(rates))


def _columns(forms: Sequence[str]) -> list[tuple[str, str, float, int]]:
    """Metric, head, factor, digits."""
    columns = [
        (f"{forms[0]}.accuracy", "answers right, %", 100.0, 1),
        (f"{forms[0]}.answer_nll", "answer NLL", 1.0, 3),
    ]
    for form in forms[1:]:
        columns += [
            (f"{form}.choice", f"{form}: choices right, %", 100.0, 1),
            (f"{form}.choice_nll", f"{form}: choice NLL", 1.0, 3),
        ]
    return [
        *columns,
        ("longppl", "LongPPL", 1.0, 2),
        ("prose_ppl", "PPL of prose", 1.0, 2),
        ("short_ppl", "PPL of short text", 1.0, 2),
    ]


def _means(result: Mapping[str, Any], forms: Sequence[str]) -> Table:
    columns = _columns(forms)
    rows = [
        (row["method"], row["arm"], str(row["step"]), *cells(row["metrics"], columns))
        for row in result["means"]
        if row["metrics"]["longppl"]["mean"] is not None or row["metrics"]["prose_ppl"]["mean"] is not None
    ]
    return Table(
        f"Means over {len(result['seeds'])} seeds [95 % interval: bootstrap of seeds and questions; for perplexities, "
        "Student's t over seeds]:",
        ("extension", "loss", "steps", *(head for _, head, _, _ in columns)),
        rows,
        left=2,
    )


def _differences(result: Mapping[str, Any], forms: Sequence[str], readings: Sequence[str], title: str) -> Table:
    columns = [
        (name, head if "PPL" not in head else f"log {head}", factor, digits if "PPL" not in head else 3)
        for name, head, factor, digits in _columns(forms)
    ]
    rows = [
        (
            row["method"],
            row["arm"],
            row["reading"] if row["reading"] != "training" else BEFORE,
            f"{row['step']} / {row['other_step']}",
            *cells(row["metrics"], columns, "+"),
        )
        for row in result["differences"]
        if row["reading"] in readings
    ]
    return Table(
        f"{title} (intervals as above; log PPL in nats):",
        ("extension", "loss", "reading", "steps", *(head for _, head, _, _ in columns)),
        rows,
        left=3,
    )


def _curve(result: Mapping[str, Any], form: str) -> Table:
    rows = [
        (
            row["method"],
            row["arm"],
            str(row["step"]),
            f"{row['seconds'] / result['timing'][row['method']]['longce']['ce_seconds']:.1f}",
            *cells(row["metrics"], [(f"{form}.accuracy", "", 100.0, 1), (f"{form}.answer_nll", "", 1.0, 3)]),
        )
        for row in sorted(result["means"], key=lambda row: (row["method"], row["arm"], row["step"]))
        if row["arm"] in ("ce", "floored") or row["arm"].startswith("longce")
    ]
    return Table(
        "By wall-clock time, in CE steps (compare the paper's figure 7, and K and d of its table 7):",
        ("extension", "loss", "steps", "time, CE steps", "answers right, %", "answer NLL"),
        rows,
        left=2,
    )


def _weights(result: Mapping[str, Any]) -> Table:
    rows = []
    for row in result["weights"]:
        answers = "-" if row["mean_of_answers"] is None else f"{row['mean_of_answers']:.2f}"
        rows.append((row["method"], row["arm"], f"{row['mean']:.3f}", answers, f"{100 * row['share_of_answers']:.2f}"))
    return Table(
        "Weights in training:",
        ("extension", "loss", "mean weight", "mean weight of answers", "answers, fraction of total weight, %"),
        rows,
        left=2,
    )


def cells(metrics: Mapping[str, Any], columns: Sequence[tuple[str, str, float, int]], sign: str = "") -> list[str]:
    """Formats means with their intervals."""
    cells = []
    for name, _, factor, digits in columns:
        found = metrics.get(name, {"mean": None, "low": None, "high": None})
        # Adding 0 makes a rounded -0.0 a 0.0.
        numbers = [None if found[key] is None else round(factor * found[key], digits) + 0.0 for key in _PLACES]
        cell = "-" if numbers[0] is None else f"{numbers[0]:{sign}.{digits}f}"
        if numbers[0] is not None and None not in numbers:
            cell += f" [{numbers[1]:{sign}.{digits}f}, {numbers[2]:{sign}.{digits}f}]"
        cells.append(cell)
    return cells


_PLACES = ("mean", "low", "high")
