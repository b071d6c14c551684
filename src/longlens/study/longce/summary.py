"""What the runs of a study say: means over seeds, and paired differences, with 95 % t-intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longlens.metrics.uncertainty import mean_interval
from longlens.study.longce.settings import Study
from longlens.study.reproduce import Table

METRICS = ("accuracy", "answer_nll", "longppl", "ppl", "short_ppl")


def equal_time_step(step: int, ratio: float) -> int:
    """The step of CE that has taken as long as ``step`` of LongCE, whose steps take ``ratio`` times as long."""
    return max(1, round(step * ratio))


def summarize(
    study: Study, runs: Sequence[Mapping[str, Any]], timing: Mapping[str, Any], start: Mapping[str, Any]
) -> dict[str, Any]:
    """Means and differences of all checkpoints.

    Args:
        study: Its settings.
        runs: All runs of some seeds.
        timing: By method, with ``ratio``.
        start: What the extended models were worth before training, by held-out documents and method.

    Returns:
        ``seeds``; ``start``, a row for each kind of held-out documents that the runs were scored on and each method
        (``documents``, ``method``, ``metrics``, which has no interval);
        ``means``, a row for each method, arm and step (``method``, ``arm``, ``step``, ``metrics``);
        ``differences``, a row for each method, checkpoint, reading (``equal steps``, ``equal time``) and arm but CE
        (``method``, ``step``, ``ce_step``, ``reading``, ``arm``, ``metrics``): the arm minus CE of the same seed;
        ``weights``, a row for each method and arm but CE. ``metrics`` are ``{"mean", "low", "high", "values"}`` by
        name, the values by seed; what does not exist is None.
    """
    points = {(run["method"], run["arm"], run["seed"], point["step"]): point for run in runs for point in run["points"]}
    seeds = sorted({run["seed"] for run in runs})
    arms = list(dict.fromkeys(run["arm"] for run in runs))

    def column(method: str, arm: str, step: int) -> dict[str, list[float | None]]:
        return {name: [points[method, arm, seed, step][name] for seed in seeds] for name in METRICS}

    parts = sorted({run["documents"] for run in runs})
    before = [
        {
            "documents": part,
            "method": method,
            "metrics": _intervals({name: [start[part][method][name]] for name in METRICS}),
        }
        for part in parts
        for method in study.extensions
    ]
    means, differences, weights = [], [], []
    for method in study.extensions:
        for arm in arms:
            steps = sorted({key[3] for key in points if key[:3] == (method, arm, seeds[0])})
            means += [
                {"method": method, "arm": arm, "step": step, "metrics": _intervals(column(method, arm, step))}
                for step in steps
            ]
            if arm == "ce":
                continue
            mine = [run["weights"] for run in runs if (run["method"], run["arm"]) == (method, arm)]
            weights.append({"method": method, "arm": arm} | {name: _mean([w[name] for w in mine]) for name in mine[0]})
            for step in study.checkpoints:
                readings = {"equal steps": step, "equal time": equal_time_step(step, timing[method]["ratio"])}
                for reading, ce_step in readings.items():
                    both = column(method, arm, step), column(method, "ce", ce_step)
                    gaps = {
                        name: [_minus(*pair) for pair in zip(both[0][name], both[1][name], strict=True)]
                        for name in METRICS
                    }
                    differences.append(
                        {"method": method, "step": step, "ce_step": ce_step, "reading": reading, "arm": arm}
                        | {"metrics": _intervals(gaps)}
                    )
    return {
        "seeds": seeds,
        "start": before,
        "means": means,
        "differences": differences,
        "weights": weights,
    }


_SHOWN = (
    ("accuracy", "answers right, %", 100, 1),
    ("answer_nll", "answer NLL", 1, 3),
    ("longppl", "LongPPL", 1, 3),
    ("ppl", "PPL", 1, 2),
    ("short_ppl", "PPL of short text", 1, 2),
)
"""Metric, column, factor, digits."""


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Means and differences of a result."""
    return [_means(result), _differences(result)]


def _means(result: Mapping[str, Any]) -> Table:
    rows = [(row["method"], "not trained", "0", *_cells(row["metrics"])) for row in result["start"]]
    rows += [(row["method"], row["arm"], str(row["step"]), *_cells(row["metrics"])) for row in result["means"]]
    order = list(result["timing"])
    seeds = ", ".join(map(str, result["seeds"]))
    return Table(
        f"Means over the seeds {seeds}, ± half of a 95 % t-interval:",
        ("extension", "loss", "steps", *_heads()),
        sorted(rows, key=lambda row: order.index(row[0])),
        left=2,
    )


def _differences(result: Mapping[str, Any]) -> Table:
    rows = [
        (
            row["method"],
            f"{row['arm']} - ce",
            str(row["step"]),
            f"{row['reading']} ({row['ce_step']})",
            *_cells(row["metrics"], "+"),
        )
        for row in result["differences"]
    ]
    return Table(
        "An arm minus CE of the same seed (± likewise), at equal steps and at equal time:",
        ("extension", "difference", "steps", "CE at (steps)", *_heads()),
        rows,
        left=2,
    )


def _heads() -> tuple[str, ...]:
    return tuple(head for _, head, _, _ in _SHOWN)


def _cells(metrics: Mapping[str, Any], sign: str = "") -> list[str]:
    """Means with half the width of their intervals."""
    cells = []
    for name, _, factor, digits in _SHOWN:
        mean, low, high = (metrics[name][key] for key in ("mean", "low", "high"))
        # Adding 0 makes a rounded -0.0 a 0.0.
        cell = "-" if mean is None else f"{round(factor * mean, digits) + 0.0:{sign}.{digits}f}"
        cells.append(cell if mean is None or low is None else f"{cell} ± {factor * (high - low) / 2:.{digits}f}")
    return cells


def _intervals(columns: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in columns.items():
        have = [value for value in values if value is not None]
        complete = len(have) == len(values)
        both = mean_interval(have) if complete else None
        found[name] = {
            "mean": _mean(values),
            "low": both[0] if both else None,
            "high": both[1] if both else None,
            "values": list(values),
        }
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    have = [value for value in values if value is not None]
    return float(np.mean(have)) if have and len(have) == len(values) else None


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
