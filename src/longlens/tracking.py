"""Results in experiment trackers: TensorBoard, Weights & Biases and trackio, each of which is an optional package.

Their own environment variables set where they write, as in transformers' Trainer: ``TENSORBOARD_LOGGING_DIR``
(``tensorboard/NAME`` unless set), ``WANDB_PROJECT`` and ``TRACKIO_PROJECT`` (``longlens`` unless set).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longlens.errors import UserError, shown_value

PROJECT = "longlens"
Logged = Mapping[str, "float | None"]


class TrackedRun(NamedTuple):
    """Data of one run for a tracker.

    Attributes:
        name: Name of the run.
        config: Its settings, plain values.
        summary: Numbers of the whole run by name; None values are left out.
        steps: Numbers by step, such as a document's place or a length in tokens.
    """

    name: str
    config: Mapping[str, Any]
    summary: Logged
    steps: Sequence[tuple[int, Logged]] = ()

    def rows(self) -> Iterable[tuple[int, dict[str, float]]]:
        """Yields the logged values in order of step; the summary is logged with the last step."""
        by_step: dict[int, dict[str, float]] = {}
        for step, values in [*self.steps, (max((step for step, _ in self.steps), default=0), self.summary)]:
            kept = {name: value for name, value in values.items() if value is not None}
            by_step.setdefault(step, {}).update(kept)
        return sorted(by_step.items())


def check_trackers(names: Sequence[str]) -> None:
    """Rejects trackers that are unknown or not installed, before anything is computed.

    Raises:
        UserError: One is unknown or not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"`log_to` is {shown_value(name)}; expected one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"`log_to={name}` needs the package {name!r}, which is not installed: pip install {name}")


def log_runs(names: Sequence[str], runs: Iterable[TrackedRun]) -> None:
    """Writes runs into trackers.

    Args:
        names: Names from `TRACKERS`.
        runs: The runs to write.

    Raises:
        UserError: See `check_trackers`.
    """
    check_trackers(names)
    for run in runs:
        for name in names:
            TRACKERS[name](run)


def _to_tensorboard(run: TrackedRun) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(os.environ.get("TENSORBOARD_LOGGING_DIR", "tensorboard"))
    with SummaryWriter(str(folder / (re.sub(r"[^\w.-]+", "-", run.name).strip("-.") or "run"))) as writer:
        writer.add_text("config", json.dumps(run.config, indent=2))
        for step, values in run.rows():
            for name, value in values.items():
                writer.add_scalar(name, value, step)


def _to_wandb(run: TrackedRun) -> None:
    wandb: Any = importlib.import_module("wandb")
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    with wandb.init(project=project, name=run.name, config=dict(run.config)) as opened:
        for step, values in run.rows():
            opened.log(values, step=step)


def _to_trackio(run: TrackedRun) -> None:
    trackio: Any = importlib.import_module("trackio")
    trackio.init(project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=run.name, config=dict(run.config))
    try:
        for step, values in run.rows():
            trackio.log(values, step=step)
    finally:
        trackio.finish()


TRACKERS: Mapping[str, Callable[[TrackedRun], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
}
"""Writers of trackers, by name."""
