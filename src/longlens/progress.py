"""Progress of a long call: the library calls these methods, and a display, such as the CLI, overrides them."""

from __future__ import annotations


class Progress:
    """A progress display; this one shows nothing.

    The library calls ``start``, then ``update`` any number of times, then ``finish``, even if the work fails; a call
    with several parts, such as tasks, repeats this for each of them.
    """

    def start(self, title: str, *, unit: str, total: float | None = None, done: float = 0.0) -> None:
        """Called when work begins.

        Args:
            title: Description of the work; plain data, not markup.
            unit: What is counted, in the plural, such as ``"steps"``.
            total: Total number of units; None if unknown.
            done: Number of units done earlier, by a run that is being resumed.
        """

    def update(self, done: float, *, note: str = "") -> None:
        """Called when ``done`` units are done, including earlier ones; ``note`` is shown with it, such as the loss."""

    def finish(self) -> None:
        """Called when work has ended, successfully or not."""
