"""Where commands print: results to stdout, everything else to stderr; names and texts are data, never markup."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
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
        print(message(text), file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """What is still buffered goes nowhere, so that the interpreter does not fail on it at its end."""
    with suppress(OSError, ValueError, AttributeError):  # it may be closed, or be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object to stdout, in ASCII, so that no terminal is steered and any encoding of stdout will do."""
    print(json.dumps(content, allow_nan=False))


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
def told_once() -> Iterator[None]:
    """Leaves out the warnings of a result, which holds them and is printed with them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LonglensWarning)
        yield


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; ``-`` where it does not exist, and with three figures from a billion on."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if abs(value) < 1e9 else f"{value:.2e}"


def interval(both: tuple[float, float] | None, digits: int = 3) -> str:
    """An interval for a table."""
    return "-" if both is None else f"[{number(both[0], digits)}, {number(both[1], digits)}]"


class ScoringProgress:
    """Tokens per second and time left of a scoring run, on stderr.

    What is left is known from the characters that are left: the run's own tokens of model input per character so far.

    Args:
        title: Shown before the bar.
        num_characters: Characters of all documents; None where they are not known beforehand.
    """

    def __init__(self, title: str, num_characters: int | None) -> None:
        self._title, self._characters_left = title, num_characters
        self._characters = self._cost = self._done = 0
        self._started = self._told = time.monotonic()
        console = Console(stderr=True, markup=False, highlight=False)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(printable(title), total=None, rate="")

    def encoded(self, num_characters: int, num_tokens: int) -> None:
        """A document of so many characters will take so many tokens of model input."""
        if num_tokens:
            self._characters += num_characters
            self._cost += num_tokens
        if self._characters_left is not None:
            self._characters_left = max(0, self._characters_left - num_characters)

    def scored(self, num_tokens: int) -> None:
        """So many tokens of model input are done."""
        self._done += num_tokens
        now = time.monotonic()
        rate = self._done / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, total=self._total(), rate=f"{rate:,.0f} tokens/s")
        elif now - self._told >= PLAIN_SECONDS:
            self._told = now
            total = self._total()
            left = "" if total is None else f", about {max(0.0, total - self._done) / rate:,.0f} s left"
            say(f"{self._title}: {self._done:,} tokens of model input, {rate:,.0f} tokens/s{left}")

    def _total(self) -> float | None:
        if self._characters_left is None or not self._characters:
            return None
        return self._cost + self._characters_left * self._cost / self._characters

    def __enter__(self) -> ScoringProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        seconds = time.monotonic() - self._started
        if error is None and self._done:
            say(f"{self._title}: {self._done:,} tokens of model input in {seconds:,.1f} s")
