"""Formats an ablation as tables, as rows of CSV files, and as charts."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from longlens.files import cannot_write, replacing, write_json
from longlens.metrics.uncertainty import Interval
from longlens.report.charts import Axis, Chart, Series
from longlens.study.ablation import Ablation, Measure, Stability
from longlens.study.ablation_sums import Setting
from longlens.study.reproduce import Table

METRICS = {
    "ppl": "PPL",
    "ppl_from_context": "PPL from K on",
    "ppl_ngram": "PPL on n-grams",
    "longppl": "LongPPL",
    "longppl_no_lcl": "LongPPL without LCL",
    "longppl_soft": "LongPPL-soft",
    "longppl_self": "LongPPL, self-evaluated",
    "bits_per_character": "bits per character",
    "key_bits_per_character": "bits per key character",
}


def tables(ablation: Ablation) -> list[Table]:
    """Returns the tables for which there are data: metrics, grid, settings, correlations, documents, evaluators."""
    made = [
        _metric_table(ablation),
        *(_grid_table(ablation, setting) for setting in ablation.settings),
        _setting_table(ablation),
        _correlation_table(ablation),
        _document_table(ablation),
        _agreement_table(ablation),
    ]
    return [table for table in made if table.rows]


def _metric_table(ablation: Ablation) -> Table:
    shown = {measure.metric: measure for measure in _default_measures(ablation, ablation.settings[0])}
    rows = [
        [model, *(_cell(measure, place) for measure in shown.values())] for place, model in enumerate(ablation.models)
    ]
    columns = ["model", *(METRICS[name] for name in shown)]
    if len(ablation.models) > 1:
        rows.append(["tau with LongPPL", *(_number(measure.kendall, 2) for measure in shown.values())])
    return Table(
        f"Metrics, {_thresholds(ablation.alpha, ablation.beta)}, {_named(ablation.settings[0])}", columns, rows
    )


def _cell(measure: Measure, place: int) -> str:
    return _with_interval(measure.values[place], measure.intervals[place])


def _grid_table(ablation: Ablation, setting: Setting) -> Table:
    rows = [
        [
            _number(measure.alpha, 4),
            "none" if measure.beta is None else _number(measure.beta, 4),
            _range([float(number) for number in measure.num_tokens], 0),
            _range([value for value in measure.values if value is not None], 3),
            *_ranking_cells(measure, ablation),
        ]
        for measure in ablation.measures
        if measure.metric in ("longppl", "longppl_no_lcl") and measure.setting == setting
    ]
    columns = ["alpha", "beta", "key tokens of a model", "LongPPL", *_ranking_columns(ablation)]
    return Table(f"Thresholds, {_named(setting)}", columns, rows)


def _setting_table(ablation: Ablation) -> Table:
    rows = []
    for measure in ablation.measures:
        is_default = (measure.alpha, measure.beta) == (ablation.alpha, ablation.beta)
        if measure.metric == "longppl" and is_default and measure.setting is not None:
            rows.append(
                [
                    measure.setting.evaluator,
                    f"{measure.setting.context:,}",
                    f"{measure.setting.stride:,}",
                    _range([float(number) for number in measure.num_tokens], 0),
                    _range([value for value in measure.values if value is not None], 3),
                    *_ranking_cells(measure, ablation),
                ]
            )
    columns = ["evaluator", "K", "d", "key tokens of a model", "LongPPL", *_ranking_columns(ablation)]
    title = f"Evaluators, K and d, {_thresholds(ablation.alpha, ablation.beta)}"
    return Table(title, columns, rows if len(rows) > 1 else [])


def _ranking_columns(ablation: Ablation) -> list[str]:
    tau = ["tau with LongPPL", "95 % interval"] if len(ablation.models) > 1 else []
    return [*tau, *(f"r with {name}" for name in ablation.benchmarks)]


def _ranking_cells(measure: Measure, ablation: Ablation) -> list[str]:
    tau = [_number(measure.kendall, 2), _interval(measure.kendall_interval, 2)] if len(ablation.models) > 1 else []
    return [*tau, *(_number(measure.correlations[name].pearson, 2) for name in ablation.benchmarks)]


def _correlation_table(ablation: Ablation) -> Table:
    rows = []
    for measure in _default_measures(ablation, ablation.settings[0]):
        for name, found in measure.correlations.items():
            coefficients = [
                (found.pearson, found.interval),
                (found.spearman, found.spearman_interval),
                (found.kendall, found.kendall_interval),
            ]
            cells = [_with_interval(value, both, 2) for value, both in coefficients]
            rows.append([METRICS[measure.metric], name, *cells, _number(found.p, 3), str(found.n)])
    columns = ["metric", "benchmark", "Pearson", "Spearman", "Kendall", "p of Pearson", "models"]
    return Table(f"Correlations, {_named(ablation.settings[0])}", columns, rows)


def _document_table(ablation: Ablation) -> Table:
    """Returns a table with one row per metric and one column per number of documents."""
    curves = [found.curve for found in ablation.stability if found.curve]
    sizes = [point.num_documents for point in curves[0]] if curves else []
    rows = []
    for found in ablation.stability:
        if found.curve and (found.setting in (None, ablation.settings[0]) or found.metric == "longppl_self"):
            pairs = found.pairs
            rows.append(
                [
                    METRICS[found.metric],
                    *(_with_interval(point.kendall, point.kendall_interval, 2) for point in found.curve),
                    _number(100 * found.curve[-1].pairs, 0),
                    f"{pairs.num_settled} of {pairs.num_pairs}",
                    _count(pairs.documents_to_settle_half),
                    _count(pairs.documents_to_settle),
                ]
            )
    columns = ["metric", *(f"tau, {size} document{'s' * (size > 1)}" for size in sizes)]
    columns += [f"pairs alike, {sizes[-1]} documents, %"] if sizes else []
    columns += [
        f"significant pairs, {ablation.num_documents} documents",
        "documents for half of the pairs",
        "for all pairs",
    ]
    return Table("Agreement of rankings by disjoint subsets of documents", columns, rows)


def _agreement_table(ablation: Ablation) -> Table:
    rows = [
        [
            _named(found.one),
            f"{found.other.evaluator} itself" if found.is_own else _named(found.other),
            found.keys.unit,
            " / ".join(f"{number:,}" for number in (*found.keys.num_keys, found.keys.num_both)),
            _with_interval(found.keys.jaccard, found.keys.jaccard_interval, 2),
            _number(found.keys.chance_jaccard, 3),
            _with_interval(found.keys.kappa, found.keys.kappa_interval, 2),
            _with_interval(found.kendall, found.kendall_interval, 2),
        ]
        for found in ablation.agreement
    ]
    columns = ["evaluator", "and", "unit", "keys / keys / both", "Jaccard", "by chance", "kappa", "tau of models"]
    return Table(f"Evaluators, {_thresholds(ablation.alpha, ablation.beta)}", columns, rows, left=3)


def _default_measures(ablation: Ablation, setting: Setting) -> list[Measure]:
    """Returns one measure per metric: at the default alpha and beta, and with this setting if the metric has one."""
    defaults = {(ablation.alpha, ablation.beta), (ablation.alpha, None), (None, None)}
    return [
        measure
        for measure in ablation.measures
        if (measure.alpha, measure.beta) in defaults
        and (measure.setting in (None, setting) or measure.metric == "longppl_self")
    ]


def _named(setting: Setting | None) -> str:
    return "" if setting is None else f"{setting.evaluator}, K={setting.context:,}, d={setting.stride:,}"


def _thresholds(alpha: float, beta: float) -> str:
    return f"alpha {alpha:g}, beta {beta:g}"


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if digits > 3 else f"{value:,.{digits}f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _interval(both: Interval | None, digits: int) -> str:
    return "-" if both is None else f"[{_number(both[0], digits)}, {_number(both[1], digits)}]"


def _with_interval(value: float | None, both: Interval | None, digits: int = 3) -> str:
    return _number(value, digits) + ("" if both is None else f" {_interval(both, digits)}")


def _range(values: Sequence[float], digits: int) -> str:
    """Formats the smallest and the largest value."""
    ends = [_number(value, digits) for value in (min(values), max(values))] if values else ["-"]
    return " to ".join(dict.fromkeys(ends))


def write_ablation(ablation: Ablation, folder: Path) -> list[Path]:
    """Writes ablation.json, and CSV files of values, correlations, documents and evaluators with one row per number.

    Args:
        ablation: The ablation to write.
        folder: Output directory; created if it does not exist.

    Raises:
        UserError: A file cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_json(folder / "ablation.json", ablation.to_json())
    columns = ablation.to_arrow().to_pydict()
    values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    written = [folder / "ablation.json"]
    for name, rows in (
        ("values", values),
        ("correlations", _correlation_rows(ablation)),
        ("documents", _document_rows(ablation)),
        ("evaluators", _agreement_rows(ablation)),
    ):
        if rows:
            written.append(folder / f"{name}.csv")
            with replacing(written[-1]) as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    return written


def _of(found: Measure | Stability) -> dict[str, Any]:
    setting = found.setting
    return {
        "metric": found.metric,
        "evaluator": setting and setting.evaluator,
        "context": setting and setting.context,
        "stride": setting and setting.stride,
        "alpha": found.alpha,
        "beta": found.beta,
    }


def _ends(name: str, both: Interval | None) -> dict[str, Any]:
    return dict(zip((f"{name}_low", f"{name}_high"), both or (None, None), strict=True))


def _correlation_rows(ablation: Ablation) -> list[dict[str, Any]]:
    return [
        _of(measure)
        | {"benchmark": name, "models": found.n, "pearson": found.pearson, **_ends("pearson", found.interval)}
        | {"p": found.p, "spearman": found.spearman, **_ends("spearman", found.spearman_interval)}
        | {"kendall": found.kendall, **_ends("kendall", found.kendall_interval)}
        for measure in ablation.measures
        for name, found in measure.correlations.items()
    ]


def _document_rows(ablation: Ablation) -> list[dict[str, Any]]:
    return [
        _of(found)
        | {"documents": point.num_documents, "kendall": point.kendall, **_ends("kendall", point.kendall_interval)}
        | {"pairs": point.pairs, **_ends("pairs", point.pairs_interval)}
        for found in ablation.stability
        for point in found.curve
    ]


def _agreement_rows(ablation: Ablation) -> list[dict[str, Any]]:
    return [
        {"one": found.one.evaluator, "one_context": found.one.context, "one_stride": found.one.stride}
        | {"other": found.other.evaluator, "other_context": found.other.context, "other_stride": found.other.stride}
        | {"other_is_own": found.is_own, "unit": found.keys.unit, "units": found.keys.num_units}
        | dict(zip(("keys_one", "keys_other"), found.keys.num_keys, strict=True))
        | {"keys_both": found.keys.num_both, "jaccard": found.keys.jaccard}
        | _ends("jaccard", found.keys.jaccard_interval)
        | {"jaccard_by_chance": found.keys.chance_jaccard, "kappa": found.keys.kappa}
        | _ends("kappa", found.keys.kappa_interval)
        | {"kendall": found.kendall, **_ends("kendall", found.kendall_interval)}
        for found in ablation.agreement
    ]


def charts(ablation: Ablation) -> list[Chart]:
    """Returns the power curve, ranking agreement by threshold, and, with benchmarks, correlation by threshold."""
    made = []
    curves = [found for found in ablation.stability if found.curve and found.setting in (None, ablation.settings[0])]
    if curves:
        made.append(
            Chart(
                name="documents",
                title="How many documents a ranking of the models needs",
                caption="Kendall's tau between the rankings by two disjoint subsets of documents, with the range of "
                "95 % of the draws; 0 by chance.",
                x=Axis(label="documents", log=True),
                y=Axis(label="Kendall's tau"),
                series=[
                    Series(
                        name=METRICS[found.metric],
                        x=[float(point.num_documents) for point in found.curve],
                        y=[point.kendall for point in found.curve],
                        low=[point.kendall_interval[0] for point in found.curve] if len(curves) < 3 else None,
                        high=[point.kendall_interval[1] for point in found.curve] if len(curves) < 3 else None,
                        color=color,
                    )
                    for color, found in enumerate(curves)
                ],
            )
        )
    for number, setting in enumerate(ablation.settings, start=1):
        cells = [m for m in ablation.measures if m.setting == setting and m.metric in ("longppl", "longppl_no_lcl")]
        if len(ablation.models) > 1:
            taus = [(measure, measure.kendall) for measure in cells]
            made.append(_by_alpha(f"thresholds-{number}", "Kendall's tau with LongPPL", setting, taus))
        for place, benchmark in enumerate(ablation.benchmarks, start=1):
            found = [(measure, measure.correlations[benchmark].pearson) for measure in cells]
            made.append(_by_alpha(f"correlation-{number}-{place}", f"Pearson r with {benchmark}", setting, found))
    return made


def _by_alpha(name: str, label: str, setting: Setting, cells: Iterable[tuple[Measure, float | None]]) -> Chart:
    lines: dict[float | None, list[tuple[float, float | None]]] = {}
    for measure, value in cells:
        assert measure.alpha is not None
        lines.setdefault(measure.beta, []).append((measure.alpha, value))
    return Chart(
        name=name,
        title=f"{label} by alpha and beta",
        caption=f"LongPPL with the key tokens of {_named(setting)}.",
        x=Axis(label="alpha, nats"),
        y=Axis(label=label),
        series=[
            Series(
                name="without LCL" if beta is None else f"beta {beta:g}",
                x=[alpha for alpha, _ in points],
                y=[value for _, value in points],
                color=color,
            )
            for color, (beta, points) in enumerate(lines.items())
        ],
    )
