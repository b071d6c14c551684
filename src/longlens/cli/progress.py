"""Shows the progress of a command: a progress bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from datetime import timedelta

import rich.progress
from rich.console import Console
from rich.text import Text

from longlens.cli import console
from longlens.cli.console import printable, say
from longlens.progress import Progress
from longlens.runs.processes import Processes

NEW_SHARE = 0.3
"""Smoothing factor: weight of a new estimate of the end time."""


class TimeLeft:
    """Estimates the end of the work from the mean rate since its start, with exponential smoothing.

    Units differ in cost, because documents differ in length; the rate of the last units alone would vary by factors.

    Args:
        done: Number of units done at the start.
        total: Total number of units; None if it is unknown.
    """

    def __init__(self, done: float, total: float | None) -> None:
        self._first, self._total = done, total
        self._started = time.monotonic()
        self._end: float | None = None

    def update(self, done: float) -> None:
        """Updates the estimate: ``done`` units are done now."""
        now = time.monotonic()
        if self._total is None or done <= self._first or now <= self._started:
            return
        end = now + (now - self._started) / (done - self._first) * (self._total - done)
        self._end = end if self._end is None or done >= self._total else self._end + NEW_SHARE * (end - self._end)

    @property
    def seconds(self) -> float | None:
        """The remaining seconds; None if there is no estimate yet."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


class _TimeLeftColumn(rich.progress.ProgressColumn):
    """The remaining time as estimated by `TimeLeft`."""

    def __init__(self, left: TimeLeft) -> None:
        super().__init__()
        self._left = left

    def render(self, task: rich.progress.Task) -> Text:
        """Formats the remaining time as ``H:MM:SS``."""
        seconds = self._left.seconds
        return Text("-:--:--" if seconds is None else str(timedelta(seconds=round(seconds))))


class ProgressBar(Progress):
    """Shows progress on stderr: a bar with the remaining time on a terminal, else a line every ten seconds.

    With torchrun, only rank 0 shows it.
    """

    def __init__(self) -> None:
        self._is_shown = Processes().rank == 0
        self._bar: rich.progress.Progress | None = None

    def start(self, title: str, *, unit: str, total: float | None = None, done: float = 0.0) -> None:
        """Shows a bar if stderr is a terminal."""
        self._title, self._unit, self._total = title, unit, total
        self._first = self._done = done
        self._note = ""
        self._left = TimeLeft(done, total)
        self._started = self._shown = time.monotonic()
        terminal = Console(stderr=True, markup=False, highlight=False)
        if self._is_shown and terminal.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.fields[state]}", markup=False),
                _TimeLeftColumn(self._left),
                console=terminal,
                transient=True,
            )
            self._task = self._bar.add_task(printable(title), total=self._total, state=self._state())
            self._bar.update(self._task, completed=done)
            self._bar.start()

    def update(self, done: float, *, note: str = "") -> None:
        """Updates the bar, or prints a line if the last line is old enough."""
        self._done, self._note, now = done, note, time.monotonic()
        self._left.update(done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, state=self._state())
        elif self._is_shown and now - self._shown >= console.PLAIN_SECONDS:
            seconds, self._shown = self._left.seconds, now
            left = "" if seconds is None else f", about {seconds:,.0f} s left"
            say(f"{self._title}: {self._state()}{left}")

    def finish(self) -> None:
        """Removes the bar and prints the elapsed time."""
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
