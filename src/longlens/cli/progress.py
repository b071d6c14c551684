"""How far a command is that does one thing many times: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time

import rich.progress
from rich.console import Console

from longlens.cli import console
from longlens.cli.console import printable, say
from longlens.progress import Progress
from longlens.runs.processes import Processes


class ProgressBar(Progress):
    """How far a command is, on stderr: a bar with the time left on a terminal, else a line every ten seconds.

    Of torchrun's processes the first one shows it.
    """

    def __init__(self) -> None:
        self._is_shown = Processes().rank == 0
        self._bar: rich.progress.Progress | None = None

    def start(self, title: str, *, unit: str, total: float | None = None, done: float = 0.0) -> None:
        """Shows a bar, where stderr is a terminal."""
        self._title, self._unit, self._total = title, unit, total
        self._first = self._done = done
        self._note = ""
        self._started = self._shown = time.monotonic()
        terminal = Console(stderr=True, markup=False, highlight=False)
        if self._is_shown and terminal.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.fields[state]}", markup=False),
                rich.progress.TimeRemainingColumn(),
                console=terminal,
                transient=True,
            )
            self._task = self._bar.add_task(printable(title), total=self._total, state=self._state())
            self._bar.update(self._task, completed=done)
            self._bar.start()

    def update(self, done: float, *, note: str = "") -> None:
        """Moves the bar, or prints a line if the last one is some time ago."""
        self._done, self._note, now = done, note, time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, state=self._state())
        elif self._is_shown and now - self._shown >= console.PLAIN_SECONDS:
            self._shown, left = now, ""
            if self._total is not None and done > self._first:
                seconds = (now - self._started) / (done - self._first) * (self._total - done)
                left = f", about {max(0.0, seconds):,.0f} s left"
            say(f"{self._title}: {self._state()}{left}")

    def finish(self) -> None:
        """Takes the bar away, and says how long it took."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._is_shown and self._done > self._first:
            seconds = time.monotonic() - self._started
            note = f", {self._note}" if self._note else ""
            say(f"{self._title}: {self._done - self._first:,.0f} {self._unit} in {seconds:,.1f} s{note}")

    def _state(self) -> str:
        of = "" if self._total is None else f" of {self._total:,.0f}"
        return f"{self._done:,.0f}{of} {self._unit}" + (f", {printable(self._note)}" if self._note else "")
