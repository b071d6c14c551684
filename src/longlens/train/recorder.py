"""What a run writes while the Trainer trains: a line a step, whole checkpoints, and progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import TrainerCallback

from longlens.train.folder import RunFolder


class Progress(Protocol):
    """Told of a run as it goes."""

    def began(self, title: str, done: int, total: int) -> None:
        """Training begins, or goes on from a step."""

    def stepped(self, done: int, line: Mapping[str, Any]) -> None:
        """A step is done; ``line`` is the last of the log."""

    def ended(self) -> None:
        """Training ended, well or not."""


class Silent:
    """No progress."""

    def began(self, title: str, done: int, total: int) -> None:
        """See `Progress`."""

    def stepped(self, done: int, line: Mapping[str, Any]) -> None:
        """See `Progress`."""

    def ended(self) -> None:
        """See `Progress`."""


class Committer(TrainerCallback):  # type: ignore[misc]
    """Says that a checkpoint is whole when all processes have written their parts; in every process of a run.

    The Trainer writes a checkpoint into its final place file by file, and its state last but in several processes not
    last of all.

    Args:
        folder: Of the run; None in processes that do not write.
        identity: What identifies the run.
        keep: How many checkpoints are kept.
    """

    def __init__(self, folder: RunFolder | None, identity: str, keep: int) -> None:
        self._folder, self._identity, self._keep = folder, identity, keep

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After the Trainer wrote a checkpoint."""
        if args.world_size > 1:
            import torch.distributed as dist

            dist.barrier()
        if self._folder is not None:
            self._folder.commit_checkpoint(state.global_step, self._identity, self._keep)


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes log.jsonl: all that is logged at a step is one line, which is there before the step's checkpoint is whole.

    Args:
        folder: Of the run.
        progress: Told of steps.
        title: Of the run.
    """

    def __init__(self, folder: RunFolder, progress: Progress, title: str) -> None:
        self._folder, self._progress, self._title = folder, progress, title
        self._line: dict[str, Any] = {}
        self._last: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Training begins."""
        self._progress.began(self._title, state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Gathers what is logged, but for what the clock says and what sums up a part of a run."""
        kept = {
            name: value
            for name, value in (logs or {}).items()
            if not name.endswith(("_runtime", "_per_second")) and not name.startswith("train_") and name != "total_flos"
        }
        if set(kept) - {"epoch"}:
            self._line = {"step": state.global_step} | self._line | kept

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The step before is over, with its evaluation."""
        self.flush()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """An update was made; its loss is logged after this."""
        self._progress.stepped(state.global_step, self._last)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A checkpoint was written, and becomes whole after this."""
        self.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Training ends."""
        self.flush()

    def flush(self) -> None:
        """Writes the line, if there is one."""
        if self._line:
            self._last, self._line = self._line, {}
            self._folder.add_to_log(self._last)

    def ended(self) -> None:
        """Training ended, well or not."""
        self._progress.ended()
