"""Where commands print: results to stdout, everything else to stderr; names and texts are data, never markup."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longlens.errors import LonglensWarning

PLAIN_SECONDS = 10.0
"""How often progress is a line where stderr is no terminal."""


def printable(text: str) -> str:
    r"""The text with control characters escaped, so that a document or a name cannot steer a terminal.

    Newlines become ``\n``; bidirectional overrides are escaped as well.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_translate: ContextVar[Callable[[str], str]] = ContextVar("translate", default=str)


@contextmanager
def translating(translate: Callable[[str], str]) -> Iterator[None]:
    """What the library says goes through ``translate`` when it is printed."""
    token = _translate.set(translate)
    try:
        yield
    finally:
        _translate.reset(token)


def message(text: str) -> str:
    """What the library says, to be printed: with flags in place of parameters."""
    return printable(_translate.get()(text))


def say(text: str) -> None:
    """One line to stderr, lost where that cannot be written."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """What is still buffered goes nowhere, so that the interpreter does not fail on it at its end."""
    with suppress(OSError, ValueError, AttributeError):  # it may be closed, or be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object to stdout, in ASCII, so that no terminal is steered and any encoding of stdout will do.

    Lists of warnings have flags in place of parameters.
    """
    print(json.dumps(_translated(content), allow_nan=False))


def _translated(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _translated(part, key) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_translated(part, name) for part in value]
    return _translate.get()(value) if name == "warnings" and isinstance(value, str) else value


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, turned: bool = False) -> None:
    """A table to stdout; the first column is left-aligned, the others right.

    Where stdout is no terminal, no cell is broken over lines. In a terminal that is too narrow, a table whose columns
    would fit as rows is turned.

    Args:
        columns: Their heads.
        rows: Cells.
        turned: Whether the columns are shown as rows.
    """
    lines = [[printable(cell) for cell in row] for row in (columns, *rows)]
    on_its_side = [list(row) for row in zip(*lines, strict=True)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if turned or (width is not None and _width(on_its_side) <= width < _width(lines)):
        lines = on_its_side
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(lines[0]):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in lines[1:]:
        table.add_row(*map(Text, row))
    # Not into stdout: where that is a closed pipe, rich would end the process with exit code 1.
    rendered = io.StringIO()
    Console(file=rendered, markup=False, highlight=False, width=width or _width(lines)).print(table)
    print(rendered.getvalue(), end="")


def _width(lines: Sequence[Sequence[str]]) -> int:
    """Cells of a terminal that a table takes, with two blanks between columns."""
    return sum(2 + max(map(cell_len, column)) for column in zip(*lines, strict=True))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Leaves out the warnings of a result, which holds them and is printed with them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LonglensWarning)
        yield


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number for a table; ``-`` where it does not exist, and with three figures from a billion on."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    return f"{value:{sign},.{digits}f}" if abs(value) < 1e9 else f"{value:{sign}.2e}"


def interval(both: tuple[float, float] | None) -> str:
    """An interval for a table."""
    return "-" if both is None else f"[{number(both[0])}, {number(both[1])}]"
