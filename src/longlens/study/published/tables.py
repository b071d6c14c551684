"""Tables of the paper and of the lecture, as data files hold them, and how a cell is found."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import Field, model_validator

from longlens.errors import UserError, shown_value
from longlens.files import parse_json
from longlens.settings.recipe import Name, Settings, nearest, parse, parse_yaml
from longlens.tables import Tabular

Cell = float | str | None
Cells = Annotated[tuple[Cell, ...], Field(strict=False)]
TEXT = "text"
"""Unit of a column that contains no numbers."""
SELF = "self"
"""Evaluator of models that select their own key tokens."""
_MEND = "install longlens again"


class Measure(Settings):
    """What a column measures, as in run directories of longlens; one of `value`, `suite`, `task`, `harness`, `mean`.

    Attributes:
        value: Key of ``perplexity.json``, such as ``longppl``.
        evaluator: Hub id of the column's evaluator, or ``self``; of ``longppl`` alone.
        suite: Of longlens bench, such as ``longbench``; its average unless `part` says otherwise.
        part: A domain of LongBench, a category of HELMET, or ``mean of six``: HELMET without citations.
        task: Of longlens bench.
        harness: Name of one of lm-evaluation-harness's tasks in `longlens.bench.selection.HARNESS`.
        mean: Several of these names, of whose scores the column is the mean.
        lengths: Tokens, over which a mean is taken; if there are none, each length of a run is alone.
    """

    value: Name | None = None
    evaluator: Name | None = None
    suite: Name | None = None
    part: Name | None = None
    task: Name | None = None
    harness: Name | None = None
    mean: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    lengths: Annotated[tuple[int, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check_kind(self) -> Measure:
        kinds = [name for name in ("value", "suite", "task", "harness", "mean") if getattr(self, name)]
        if len(kinds) != 1:
            raise UserError(f"a measure has {kinds}: expected one of value, suite, task, harness, mean")
        return self


class PublishedColumn(Settings):
    """A column.

    Attributes:
        name: Its name, unique in the table.
        unit: Such as ``%`` or ``perplexity``; ``text`` for names and words.
        decimals: Digits behind the point, as printed; None if they vary, or where there are no numbers.
        measure: How a user's own run has this number; None if no run directory does.
    """

    name: Name
    unit: Name
    decimals: int | None = None
    measure: Measure | None = None

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit: the printed value is at most that far from the exact one."""
        return 0.0 if self.decimals is None else 0.5 * 10.0**-self.decimals

    def text(self, value: Cell) -> str:
        """A cell as it is printed; ``-`` where there is no number."""
        if value is None or isinstance(value, str):
            return value or "-"
        return f"{value:g}" if self.decimals is None else f"{value:.{self.decimals}f}"


class PublishedRow(Settings):
    """A row.

    Attributes:
        name: Its name, unique in its group.
        group: Group of rows that belong together, such as a training setting; empty in tables without groups.
        values: A cell a column; None if the number is in a figure alone, or was not printed.
    """

    name: Name
    group: str = ""
    values: Cells


class PublishedTable(Settings, Tabular):
    """A table, or a figure whose numbers matter.

    Attributes:
        id: How `longlens.study.published.table` finds it.
        label: Its label in the paper, such as ``Table 9``.
        section: Section of the paper; None in a lecture.
        page: None: the text that the numbers were read from has no page numbers.
        slide: Slide of the lecture, counted by the numbers in its text; None in a paper.
        title: What it shows.
        note: What has to be known of the printed form; empty if there is nothing.
        commands: What computes such numbers here; MODEL, RUN and the like are for the user to fill in.
        columns: Its columns.
        rows: Its rows.
    """

    id: Name
    label: Name
    section: Name | None = None
    page: int | None = None
    slide: int | None = None
    title: Name
    note: str = ""
    commands: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    columns: Annotated[tuple[PublishedColumn, ...], Field(strict=False)]
    rows: Annotated[tuple[PublishedRow, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _check_cells(self) -> PublishedTable:
        if (self.section is None) == (self.slide is None):
            raise UserError(f"{self.label} has neither or both of section and slide")
        for what, names in (
            ("column", [column.name for column in self.columns]),
            ("row", [(row.group, row.name) for row in self.rows]),
        ):
            if len(set(names)) < len(names):
                raise UserError(f"{self.label} has a {what} twice")
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise UserError(f"{self.label}, {row.name}: {len(row.values)} cells of {len(self.columns)} columns")
            for column, value in zip(self.columns, row.values, strict=True):
                if value is not None and isinstance(value, str) != (column.unit == TEXT):
                    raise UserError(f"{self.label}, {row.name}, {column.name} is {shown_value(value)}")
                if isinstance(value, float) and column.decimals is not None and round(value, column.decimals) != value:
                    raise UserError(f"{self.label}, {row.name}, {column.name} has more digits than its column")
        return self

    @property
    def place(self) -> str:
        """Its place, such as ``Table 9, section B.3``."""
        where = f"section {self.section}" if self.slide is None else f"slide {self.slide}"
        return f"{self.label}, {where}"

    def column(self, name: str) -> PublishedColumn:
        """The column of a name.

        Raises:
            UserError: There is none.
        """
        return self.columns[self._column_index(name)]

    def row(self, name: str, group: str = "") -> PublishedRow:
        """The row of a name, in a group where the table has groups.

        Raises:
            UserError: There is none.
        """
        for row in self.rows:
            if (row.group, row.name) == (group, name):
                return row
        known = [f"{row.group}: {row.name}" if row.group else row.name for row in self.rows]
        asked = f"{group}: {name}" if group else name
        raise UserError(f"{self.label} has no row {asked!r}{nearest(asked, known)}; it has {', '.join(known)}")

    def value(self, row: str, column: str, group: str = "") -> Cell:
        """A cell; None if the number is in a figure alone, or was not printed.

        Raises:
            UserError: There is no such row or column.
        """
        return self.row(row, group).values[self._column_index(column)]

    def number(self, row: str, column: str, group: str = "") -> float:
        """A cell that has to be a number.

        Raises:
            UserError: There is no such row or column, or no number in its cell.
        """
        value = self.value(row, column, group)
        if not isinstance(value, float):
            raise UserError(f"{self.label}: {row}, {column} has no number: it is {shown_value(value)}")
        return value

    def groups(self) -> list[str]:
        """Names of the groups in their order; one that is empty in a table without groups."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def of_group(self, group: str = "") -> list[PublishedRow]:
        """The rows of a group."""
        return [row for row in self.rows if row.group == group]

    def _column_index(self, name: str) -> int:
        names = [column.name for column in self.columns]
        if name not in names:
            raise UserError(f"{self.label} has no column {name!r}{nearest(name, names)}; it has {'; '.join(names)}")
        return names.index(name)

    def _columns(self) -> dict[str, list[Any]]:
        cells = {c.name: [row.values[at] for row in self.rows] for at, c in enumerate(self.columns)}
        return {"group": [row.group for row in self.rows], "row": [row.name for row in self.rows], **cells}


class Statement(Settings):
    """Numbers that are in prose but not in a table.

    Attributes:
        id: Its name.
        section: Section of the paper; None in a lecture.
        slide: Slide of the lecture; None in a paper.
        says: What is said, in words of ours.
        values: The numbers by names.
    """

    id: Name
    section: Name | None = None
    slide: int | None = None
    says: Name
    values: dict[str, float]


class Erratum(Settings):
    """What is printed and cannot be meant.

    Attributes:
        id: Its name.
        place: Its place.
        printed: The printed statement, in few words.
        recomputed: What it has to be.
        why: How that is known.
        check: The id of a check of `longlens.study.published.recompute` that finds it; None for words and formulas.
    """

    id: Name
    place: Name
    printed: Name
    recomputed: Name
    why: Name
    check: Name | None = None


class Publication(Settings):
    """The paper, or the lecture.

    Attributes:
        title: Its title.
        source: Who wrote it, and where.
        tables: Its tables in their order, then its figures.
        statements: Numbers in prose.
        errata: What is printed and cannot be meant.
    """

    title: Name
    source: Name
    tables: Annotated[tuple[PublishedTable, ...], Field(strict=False)]
    statements: Annotated[tuple[Statement, ...], Field(strict=False)]
    errata: Annotated[tuple[Erratum, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _check_ids(self) -> Publication:
        for parts in (self.tables, self.statements, self.errata):
            ids = [part.id for part in parts]
            if len(set(ids)) < len(ids):
                raise UserError(f"{self.title} has an id twice")
        return self

    def table(self, which: int | str) -> PublishedTable:
        """A table by its number, or by its id, such as ``figure-5``.

        Raises:
            UserError: There is none.
        """
        for table in self.tables:
            if table.id == str(which):
                return table
        known = [table.id for table in self.tables]
        raise UserError(f"{self.source} has no table {str(which)!r}; known are {', '.join(known)}")

    def statement(self, id: str) -> Statement:
        """Numbers in prose, by the statement's id.

        Raises:
            UserError: There is none.
        """
        for statement in self.statements:
            if statement.id == id:
                return statement
        raise UserError(f"no statement {id!r}{nearest(id, [one.id for one in self.statements])}")


@cache
def publication(name: str) -> Publication:
    """Reads and checks the data files of ``paper`` or ``lecture``."""
    folder = resources.files("longlens.study.published")
    content = parse_json((folder / f"{name}.json").read_text(encoding="utf-8"), f"{name}.json", _MEND)
    more = parse_yaml((folder / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml", _MEND)
    return parse(Publication, content | more, name)
