"""Prints results to stdout and everything else to stderr; names and texts are escaped, and are never markup."""

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
"""Seconds between progress lines if stderr is not a terminal."""


def printable(text: str) -> str:
    r"""Escapes control characters, so that a document or a name cannot control the terminal.

    Newlines become ``\n``; bidirectional overrides are escaped as well.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_translate: ContextVar[Callable[[str], str]] = ContextVar("translate", default=str)


@contextmanager
def translating(translate: Callable[[str], str]) -> Iterator[None]:
    """Applies ``translate`` to messages of the library when they are printed."""
    token = _translate.set(translate)
    try:
        yield
    finally:
        _translate.reset(token)


def message(text: str) -> str:
    """Prepares a message of the library for printing: replaces parameter names by flags and escapes it."""
    return printable(_translate.get()(text))


def say(text: str) -> None:
    """Prints one line to stderr; discards it if stderr cannot be written."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Discards buffered output, so that the interpreter does not fail when it flushes the stream at exit."""
    with suppress(OSError, ValueError, AttributeError):  # the stream may be closed, or have no file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(content: Mapping[str, Any]) -> None:
    """Prints one JSON object to stdout, in ASCII, which is safe for terminals and any encoding of stdout.

    Lists of warnings contain flags instead of parameter names.
    """
    print(json.dumps(_translated(content), allow_nan=False))


def _translated(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _translated(part, key) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_translated(part, name) for part in value]
    return _translate.get()(value) if name == "warnings" and isinstance(value, str) else value


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, turned: bool = False) -> None:
    """Prints a table to stdout; the first column is left-aligned, the others are right-aligned.

    If stdout is not a terminal, cells are never wrapped. If the terminal is too narrow for the table, but wide enough
    for the transposed table, the table is transposed.

    Args:
        columns: Column titles.
        rows: Cells.
        turned: Whether the table is always transposed.
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
    # Not directly to stdout: if stdout is a closed pipe, rich would exit the process with code 1.
    rendered = io.StringIO()
    Console(file=rendered, markup=False, highlight=False, width=width or _width(lines)).print(table)
    print(rendered.getvalue(), end="")


def _width(lines: Sequence[Sequence[str]]) -> int:
    """Returns the width of a table in terminal cells, with two blanks between columns."""
    return sum(2 + max(map(cell_len, column)) for column in zip(*lines, strict=True))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppresses warnings that the result also contains, because they are printed with the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LonglensWarning)
        yield


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Formats a number for a table: ``-`` for None, scientific notation with three digits from 1e9."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    return f"{value:{sign},.{digits}f}" if abs(value) < 1e9 else f"{value:{sign}.2e}"


def interval(both: tuple[float, float] | None) -> str:
    """Formats an interval for a table."""
    return "-" if both is None else f"[{number(both[0])}, {number(both[1])}]"
