"""Published tables as rows of text, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from longlens.study import published
from longlens.study.published.beside import Beside, OwnValue
from longlens.study.published.tables import PublishedColumn, PublishedTable

OWN = "yours"
"""Group of the user's rows."""


def listing() -> list[list[str]]:
    """A row a table: its id, place, title, and how many of its cells are known."""
    rows = []
    for id, table in published.tables().items():
        cells = [value for row in table.rows for value in row.values]
        known = sum(value is not None for value in cells)
        rows.append([id, table.place, table.title, f"{known} of {len(cells)}" if known < len(cells) else str(known)])
    return rows


def table_rows(table: PublishedTable, own: Beside | None = None) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table; rows of the user's models below its own where they have the same columns."""
    joins = own is not None and own.is_same_table
    has_groups = joins or any(row.group for row in table.rows)
    extra = (
        [] if own is None or not joins else [c for c in own.columns if c.name not in {k.name for k in table.columns}]
    )
    columns = [*table.columns, *extra]
    rows = [
        [
            *([row.group] if has_groups else []),
            row.name,
            *(c.text(v) for c, v in zip(columns, row.values, strict=False)),
        ]
        for row in table.rows
    ]
    for row in rows:
        row += ["-"] * len(extra)
    if own is not None and joins:
        rows += [[OWN, name, *(_cell(c, values.get(c.name)) for c in columns)] for name, values in own.rows()]
    return [*(["group"] if has_groups else []), "row", *(column.name for column in columns)], rows


def own_rows(own: Beside) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the user's models, a column a measure."""
    rows = [[name, *(_cell(column, values.get(column.name)) for column in own.columns)] for name, values in own.rows()]
    return ["model", *(column.name for column in own.columns)], rows


def _cell(column: PublishedColumn, own: OwnValue | None) -> str:
    if own is None:
        return "-"
    digits = 1 if column.decimals is None else column.decimals
    both = "" if own.interval is None else f" [{own.interval[0]:.{digits}f}, {own.interval[1]:.{digits}f}]"
    return f"{own.value:.{digits}f}{both}"


def notes_of(table: PublishedTable, own: Beside | None = None) -> Iterator[str]:
    """What has to be known of a table, and of the user's numbers in it."""
    if table.note:
        yield f"note: {table.note}"
    document = published.paper() if table.slide is None else published.lecture()
    for erratum in document.errata:
        if erratum.check is not None and erratum.check.startswith(f"{table.id}, "):
            yield f"erratum: {erratum.place}: printed {erratum.printed}, recomputed {erratum.recomputed}"
    for model, differs in own.differs.items() if own is not None else ():
        for one in differs:
            yield f"{model}: {one}"
    if own is None:
        for command in table.commands:
            yield f"computed by: {command}"


def to_json(table: PublishedTable, own: Beside | None = None) -> dict[str, Any]:
    """A table as plain values, with the user's models under ``models``."""
    content = table.model_dump(mode="json", exclude_none=False)
    if own is None:
        return content
    return content | {"models": [_model_json(own, name) for name in own.models]}


def _model_json(own: Beside, name: str) -> dict[str, Any]:
    values: dict[str, Sequence[dict[str, Any]]] = {
        column: [{"value": one.value, "interval": one.interval, "length": one.length} for one in found]
        for column, found in own.models[name].items()
    }
    return {"model": name, "values": values, "differs": own.differs[name]}
