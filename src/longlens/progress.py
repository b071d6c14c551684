"""How far a long call is: the library calls these methods, and what shows it, such as the CLI, overrides them."""

from __future__ import annotations


class Progress:
    """A progress display; this one shows nothing.

    A call makes ``start``, then ``update`` any number of times, then ``finish``, also where it fails; a call with
    several parts, such as tasks, does that for each of them.
    """

    def start(self, title: str, *, unit: str, total: float | None = None, done: float = 0.0) -> None:
        """Work begins.

        Args:
            title: What is done; data, not markup.
            unit: What is counted, in the plural, such as ``"steps"``.
            total: How many there are; None where that is not known.
            done: How many were done before, by a run that is resumed.
        """

    def update(self, done: float, *, note: str = "") -> None:
        """``done`` units are done by now, those before included; ``note`` is shown beside it, such as the loss."""

    def finish(self) -> None:
        """Work has ended, well or not."""
