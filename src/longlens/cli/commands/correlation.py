"""Prints the results of ``longlens study correlate``."""

from __future__ import annotations

from longlens.cli.console import print_table
from longlens.metrics.uncertainty import Interval
from longlens.study.correlation import METRICS, Correlation, CorrelationTable

MAIN = "longppl"


def print_correlations(table: CorrelationTable) -> None:
    """Prints Table 1 of the paper, further coefficients of LongPPL, and Williams' test against the baseline."""
    benchmarks = list(table.benchmarks)
    print(f"Pearson's r over {len(table.models)} models, with 95 % intervals")
    print_table(
        ["", *benchmarks],
        [
            [METRICS.get(metric, metric), *(_r(row[name].pearson, row[name].interval) for name in benchmarks)]
            for metric, row in table.correlations.items()
        ],
        turned=len(benchmarks) > len(table.correlations),
    )
    main = MAIN if MAIN in table.correlations else next(iter(table.correlations), None)
    if main is None:
        return
    found = table.correlations[main]
    print(f"\n{METRICS.get(main, main)}")
    print_table(
        ["benchmark", "models", "p", "Spearman", "Kendall", "r of its logarithm", "r without one family"],
        [
            [
                name,
                str(found[name].n),
                _p(found[name].p),
                _r(found[name].spearman, found[name].spearman_interval),
                _r(found[name].kendall, found[name].kendall_interval),
                _r(found[name].log_pearson, found[name].log_interval),
                _without_families(found[name]),
            ]
            for name in benchmarks
        ],
    )
    for name in benchmarks:
        if found[name].reason is not None:
            print(f"{name}: {found[name].reason}")
    if main in table.tests and table.baseline is not None:
        print(f"\n{METRICS.get(main, main)} against {METRICS.get(table.baseline, table.baseline)}, Williams' test")
        print_table(
            ["benchmark", "difference of r", "t", "degrees of freedom", "p"],
            [
                [
                    name,
                    _r(test.difference, test.interval),
                    "-" if test.t is None else f"{test.t:.2f}",
                    "-" if test.freedom is None else str(test.freedom),
                    _p(test.p),
                ]
                for name, test in table.tests[main].items()
            ],
        )


def _r(value: float | None, both: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if both is None else f" [{both[0]:.2f}, {both[1]:.2f}]")


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value >= 1e-4 else "< 0.0001"


def _without_families(found: Correlation) -> str:
    """Returns the smallest and the largest r when one family is left out, each with that family."""
    known = {family: r for family, r in found.leave_one_family_out.items() if r is not None}
    if not known:
        return "-"
    low, high = min(known, key=lambda family: known[family]), max(known, key=lambda family: known[family])
    parts = dict.fromkeys([low, high])
    return ", ".join(f"{known[family]:.2f} ({family})" for family in parts)
