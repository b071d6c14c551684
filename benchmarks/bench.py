"""Benchmark scores of small models: python -m benchmarks.bench RUN [RUN ...]    (docs/bench.md has the commands)"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.tables import write_table
from longlens.bench.results import summarize_run
from longlens.bench.table import results_table


def main() -> None:
    table = results_table({Path(run).name: summarize_run(run) for run in sys.argv[1:]})
    write_table("bench", table.columns, table.rows, "docs/bench.md")


if __name__ == "__main__":
    main()
