"""Benchmark scores of models, from a file of the user's."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

from longlens.errors import UserError


def read_benchmarks(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores by benchmark and model, from a CSV file: a column ``model``, and one a benchmark; an empty cell is none.

    ::

        model,LongBench,RULER
        smollm2,21.3,40.1

    Args:
        path: The file.
        names: What the models of the report are called.

    Raises:
        UserError: No such file, no such columns, a model that is not in the report or is there twice, or a cell that
            is not a number.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path}: {error}. Expected CSV with the columns model and one a benchmark"
        ) from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    if len(header) < 2 or header[0] != "model" or len(set(header)) < len(header) or not all(header):
        raise UserError(f"{path} begins with {header}, expected a line such as model,LongBench,RULER")
    scores: dict[str, dict[str, float]] = {benchmark: {} for benchmark in header[1:]}
    seen: set[str] = set()
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise UserError(f"{path}:{number}: {len(row)} cells, expected {len(header)} as in its first line")
        name = row[0].strip()
        if name not in names or name in seen:
            raise UserError(
                f"{path}:{number}: model {name!r} is {'there twice' if name in seen else 'not in the report'}; "
                f"the report has {', '.join(names)}"
            )
        seen.add(name)
        for benchmark, cell in zip(header[1:], row[1:], strict=True):
            if cell.strip():
                scores[benchmark][name] = _score(path, number, cell)
    return scores


def _score(path: Path, number: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError as error:
        raise UserError(f"{path}:{number}: {cell!r} is not a number") from error
    if not math.isfinite(value):
        raise UserError(f"{path}:{number}: {cell!r} is not a finite number; leave the cell empty where there is none")
    return value
