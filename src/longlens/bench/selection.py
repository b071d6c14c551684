"""Selects what a run contains: tasks of longlens by name or suite, and unmodified tasks of lm-evaluation-harness."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longlens.bench.prompts import PromptSettings
from longlens.errors import UserError, shown_value
from longlens.reasoning import Marks
from longlens.settings.options import SEED
from longlens.tasks import get_task, list_tasks, task_settings, usable_tasks
from longlens.tasks.base import Sample, Task
from longlens.tasks.data import check_files

_LOGGER = logging.getLogger(__name__)

PREFIX = "lm_eval:"
"""Prefix of names of lm-evaluation-harness, for tasks that are not in `HARNESS`."""
BABILONG_LENGTHS = tuple(1024 * thousands for thousands in (1, 2, 4, 8, 16, 32, 64, 128))
"""Lengths for which the Hub has data of BABILong, RMT-team/babilong-1k-samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    """A task or group of lm-evaluation-harness.

    Attributes:
        name: Name in longlens.
        task: Name in lm-evaluation-harness; several names are separated by commas.
        metric: The metric that papers report; empty for a group without one.
        few_shot: Number of examples in the prompt; the task's own number by default.
        by_length: Whether the data comes in several lengths, such as ``4k``, of which one is used at a time.
    """

    name: str
    task: str
    metric: str
    few_shot: int | None = None
    by_length: bool = False


# Short-context tasks: LongCE's paper, table 10, lists MMLU, ARC-C, RACE, BBH, TruthfulQA and CommonsenseQA; the
# lecture's tables of ProLong list HellaSwag, MMLU, ARC-c, WinoGrande and GSM8K. Neither gives the number of examples in
# a prompt: we use that of the Open LLM Leaderboard's first version (ARC 25, HellaSwag 10, MMLU, WinoGrande and GSM8K
# 5), else the task's own.
HARNESS: dict[str, HarnessTask] = {
    task.name: task
    for task in (
        HarnessTask(name="mmlu", task="mmlu", metric="acc", few_shot=5),
        HarnessTask(name="arc_challenge", task="arc_challenge", metric="acc_norm", few_shot=25),
        HarnessTask(name="race", task="race", metric="acc"),
        HarnessTask(name="bbh", task="bbh_cot_fewshot", metric="exact_match"),
        HarnessTask(name="truthfulqa", task="truthfulqa_mc2", metric="acc"),
        HarnessTask(name="commonsense_qa", task="commonsense_qa", metric="acc"),
        HarnessTask(name="hellaswag", task="hellaswag", metric="acc_norm", few_shot=10),
        HarnessTask(name="winogrande", task="winogrande", metric="acc", few_shot=5),
        HarnessTask(name="gsm8k", task="gsm8k", metric="exact_match", few_shot=5),
        # The group babilong has qa1 to qa20, but the data of qa6 to qa20 has no lengths; this group has qa1 to qa5.
        HarnessTask(name="babilong", task="babilong_longctx", metric="acc", by_length=True),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedTasks:
    """The tasks that names refer to.

    Attributes:
        tasks: Tasks of longlens.
        harness: Tasks of lm-evaluation-harness.
    """

    tasks: tuple[str, ...]
    harness: tuple[HarnessTask, ...]


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Which samples are run, and how.

    Attributes:
        tasks: Names of tasks and suites, or files of samples that `longlens bench build` wrote.
        lengths: Budgets in tokens, each for every task; none if settings or data determine the lengths.
        samples: Number of samples of each task and length; the benchmark's own number by default.
        seed: Seed of the samples.
        prompts: How samples become prompts.
        think_marks: Begin and end of reasoning, in addition to those of `longlens.reasoning.MARKS`.
        few_shot: Number of examples for tasks of lm-evaluation-harness, instead of their own.
        settings: Settings of tasks, such as ``haystack`` and ``data_dir``; each must be a setting of at least one task.
        keep_prompts: Whether the exact prompts are stored.
    """

    tasks: Sequence[str]
    lengths: Sequence[int] = ()
    samples: int | None = None
    seed: int = SEED
    prompts: PromptSettings = field(default_factory=PromptSettings)
    think_marks: Marks | None = None
    few_shot: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep_prompts: bool = True

    @property
    def files(self) -> list[str]:
        """The names in `tasks` that are sample files."""
        return [name for name in self.tasks if name.endswith(".jsonl")]

    @property
    def selected(self) -> SelectedTasks:
        """The tasks that the other names refer to.

        Raises:
            UserError: A task or suite does not exist.
        """
        return select_tasks(name for name in self.tasks if name not in self.files)


def suites() -> Mapping[str, tuple[str, ...]]:
    """Returns tasks by suite, in the order of the registry, without tasks that cannot be used."""
    found: dict[str, list[str]] = {}
    for name, task in usable_tasks()[0].items():
        found.setdefault(task.suite, []).append(name)
    return {suite: tuple(names) for suite, names in found.items()}


def select_tasks(names: Iterable[str]) -> SelectedTasks:
    """Returns tasks and suites by name, each task once.

    Raises:
        UserError: A task or suite does not exist; the message suggests a similar name.
    """
    tasks: dict[str, None] = {}
    harness: dict[str, HarnessTask] = {}
    of_suites, known_tasks = suites(), list_tasks()
    for name in names:
        if name in known_tasks:
            tasks[name] = None
        elif name in of_suites:
            tasks |= dict.fromkeys(of_suites[name])
        elif name in HARNESS:
            harness[name] = HARNESS[name]
        elif name.startswith(PREFIX) and len(name) > len(PREFIX):
            harness[name] = HarnessTask(name=name, task=name.removeprefix(PREFIX), metric="")
        else:
            known = [*of_suites, *known_tasks, *HARNESS]
            close = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else "longlens bench list shows all, or install the plugin that provides it"
            )
            raise UserError(f"no task or suite {name!r}: {hint}")
    return SelectedTasks(tasks=tuple(tasks), harness=tuple(harness.values()))


def find_tasks(wanted: str | None, tasks: Mapping[str, Task]) -> SelectedTasks:
    """Returns the tasks to list: a task, else those of a suite, of a category, or with this text in their name.

    Args:
        wanted: Name of a task, suite or category, or a part of a task's name; None for all tasks.
        tasks: Available tasks, by name.

    Raises:
        UserError: No task matches; the message suggests a similar name.
    """
    if wanted is None:
        return SelectedTasks(tasks=tuple(tasks), harness=tuple(HARNESS.values()))
    low = wanted.casefold()
    for of_task in (
        lambda name, _: name == wanted,
        lambda _, task: task is not None and task.suite.casefold() == low,
        lambda _, task: task is not None and task.category.casefold() == low,
        lambda name, _: low in name.casefold(),
    ):
        found = tuple(name for name, task in tasks.items() if of_task(name, task))
        harness = tuple(task for name, task in HARNESS.items() if of_task(name, None))
        if found or harness:
            return SelectedTasks(tasks=found, harness=harness)
    known = {*tasks, *HARNESS, *(task.suite for task in tasks.values())}
    known |= {task.category for task in tasks.values() if task.category}
    close = difflib.get_close_matches(wanted, sorted(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "longlens bench list shows all"
    raise UserError(f"no task, suite or category {shown_value(wanted)}: {hint}")


def make_tasks(
    names: Iterable[str],
    settings: Mapping[str, Any],
    shared: Mapping[str, Any] | None = None,
    lengths: Sequence[int] = (),
) -> list[Task]:
    """Creates tasks, each with those settings that it has.

    Args:
        names: Names of the tasks.
        settings: Settings, each of which must be a setting of at least one task.
        shared: Settings that no task needs to have.
        lengths: Lengths of the samples, for tasks that have one file per length.

    Raises:
        UserError: No task has one of the settings, or data files are missing; the message lists all missing files.
    """
    chosen = list(names)
    check_settings(chosen, settings)
    given = {**(shared or {}), **settings}
    tasks = [
        get_task(name, **{key: value for key, value in given.items() if key in task_settings(name)}) for name in chosen
    ]
    check_files(tasks, lengths)
    return tasks


def check_settings(names: Iterable[str], settings: Iterable[str]) -> None:
    """Checks that each setting is a setting of at least one task.

    Raises:
        UserError: No task has one of the settings.
    """
    chosen = list(names)
    for setting in settings:
        if chosen and not any(setting in task_settings(name) for name in chosen):
            known = sorted({own for name in chosen for own in task_settings(name)})
            raise UserError(f"none of {', '.join(chosen)} has a setting {setting!r}: they have {', '.join(known)}")


def task_of(sample: Sample, places: Mapping[str, Any] | None = None) -> Task:
    """Returns the task that scores a sample, from its metadata. It needs files only if a judge needs them.

    Args:
        sample: The sample.
        places: Directories, for the tasks that have such a setting; samples do not record them.

    Raises:
        UserError: The metadata contains no task.
    """
    name = sample.metadata.get("task")
    if not isinstance(name, str):
        raise UserError(
            f"sample {shown_value(sample.id)} has no task in its metadata: pass a file of longlens bench build"
        )
    own = task_settings(name)
    given = {**(sample.metadata.get("settings") or {}), **(places or {})}
    return get_task(name, **{key: value for key, value in given.items() if key in own})


def check_harness(settings: BenchSettings) -> None:
    """Checks the settings of tasks of lm-evaluation-harness before a model is loaded.

    Raises:
        UserError: A task does not support one of the settings.
    """
    selected, lengths, prompts = settings.selected, settings.lengths, settings.prompts
    takes_length = bool(selected.tasks) or any(task.by_length for task in selected.harness)
    for task in selected.harness:
        if prompts.mode != "generate":
            raise UserError(f"{task.name} is a task of lm-evaluation-harness with its own mode: leave `mode` out")
        if prompts.overlong in ("skip", "context-only"):
            raise UserError(
                f"{task.name} is a task of lm-evaluation-harness: `overlong={prompts.overlong}` is not possible, "
                "because its prompts are plain texts: use error, middle or left"
            )
        if task.by_length and not lengths:
            raise UserError(f"{task.name} has data of several lengths: pass `lengths`, such as `lengths=[4096]`")
        if task.by_length and not set(lengths) <= set(BABILONG_LENGTHS):
            other = next(length for length in lengths if length not in BABILONG_LENGTHS)
            known = ", ".join(map(str, BABILONG_LENGTHS))
            raise UserError(f"{task.name} has no data of length {other}: pass `lengths` with some of {known}")
        if lengths and not takes_length:
            raise UserError(f"{task.name} has prompts of one length, which `lengths` does not change: leave it out")
        for what, value, least in (("samples", settings.samples, 1), ("few_shot", settings.few_shot, 0)):
            if value is not None and value < least:
                raise UserError(f"`{what}={value}`; expected at least {least}")
    fixed = [task.name for task in selected.harness if lengths and not task.by_length]
    if fixed:
        _LOGGER.info(f"`lengths` does not apply to {', '.join(fixed)}, whose data fixes the length")
