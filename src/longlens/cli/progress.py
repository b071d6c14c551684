"""How far a command is that does one thing many times: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any


class CountProgress:
    """Counts what is done, on stderr.

    Args:
        what: What is counted, in the plural.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._title, self._total, self._done = "", 0, 0
        self._started = self._told = time.monotonic()

    def asked(self, title: str, requests: int) -> None:
        """So many more are about to be done."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from longlens.cli.console import printable, say

        self._stop()
        self._title, self._total, self._done = printable(title), requests, 0
        self._started = self._told = time.monotonic()
        console = Console(stderr=True, markup=False, highlight=False)
        if not console.is_terminal:
            say(f"{self._title}: {requests:,} {self._what} to answer")
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}", markup=False),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task(self._title, total=requests)
        self._bar.start()

    def answered(self) -> None:
        """One is done."""
        from longlens.cli.console import PLAIN_SECONDS, say

        self._done, now = self._done + 1, time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif now - self._told >= PLAIN_SECONDS:
            self._told = now
            left = (now - self._started) / self._done * (self._total - self._done)
            say(f"{self._title}: {self._done:,} of {self._total:,} {self._what}, about {left:,.0f} s left")

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> CountProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
