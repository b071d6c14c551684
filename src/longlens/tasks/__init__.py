"""Provides benchmark tasks, which build samples and score predictions. No model is run here.

```python
task = get_task("niah_single_2", haystack="essays/")
samples = task.build(length=32768, samples=100, seed=42, tokenizer=tokenizer)
scores = [task.score(sample, answer) for sample, answer in zip(samples, answers)]
task.aggregate(scores)
```

Another package adds a task with an entry point of the group ``longlens.tasks``. The entry point has the task's name and
refers to a dataclass that is a `Task`. `longlens.testing.check_task` checks such a task.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from typing import Any

from longlens.errors import UserError, library_errors
from longlens.plugins import Group, list_plugins, load_plugin
from longlens.settings.recipe import check_values
from longlens.tasks.bamboo import TASKS as BAMBOO_TASKS
from longlens.tasks.base import Sample as Sample
from longlens.tasks.base import Task as Task
from longlens.tasks.descriptions import DESCRIPTIONS
from longlens.tasks.fitting import Draft as Draft
from longlens.tasks.fitting import Plan as Plan
from longlens.tasks.fitting import Whole as Whole
from longlens.tasks.helmet import TASKS as HELMET_TASKS
from longlens.tasks.infinitebench import TASKS as INFINITEBENCH_TASKS
from longlens.tasks.leval import TASKS as LEVAL_TASKS
from longlens.tasks.longbench import TASKS as LONGBENCH_TASKS
from longlens.tasks.longeval import PAPER_LINES, LongEvalLines, LongEvalTopics
from longlens.tasks.loogle import TASKS as LOOGLE_TASKS
from longlens.tasks.niah import NeedleGrid
from longlens.tasks.ruler import RULER as RULER
from longlens.tasks.scrolls import TASKS as SCROLLS_TASKS

GROUP: Group = "longlens.tasks"
_EXPECTED = "a dataclass that is a longlens.tasks.Task, or functools.partial of one"
_TASKS: dict[str, Callable[..., Task]] = {
    "longeval_lines": LongEvalLines,
    "longeval_lines_1350": partial(LongEvalLines, lines=PAPER_LINES),
    "longeval_topics": LongEvalTopics,
    "niah_grid": NeedleGrid,
    **RULER,
    **HELMET_TASKS,
    **LONGBENCH_TASKS,
    **INFINITEBENCH_TASKS,
    **SCROLLS_TASKS,
    **LEVAL_TASKS,
    **BAMBOO_TASKS,
    **LOOGLE_TASKS,
}


def list_tasks() -> list[str]:
    """Names of all tasks for `get_task`: built-in tasks, then those of plugins."""
    return [*_TASKS, *plugin_tasks()]


def plugin_tasks() -> dict[str, str]:
    """Tasks of plugins (entry points ``longlens.tasks``), each with its package."""
    return {name: package for name, package in list_plugins(GROUP).items() if name not in _TASKS}


def usable_tasks() -> tuple[dict[str, Task], dict[str, str]]:
    """All tasks with default settings, and for each task that cannot be used the error message of `get_task`."""
    tasks: dict[str, Task] = {}
    problems: dict[str, str] = {}
    for name in list_tasks():
        try:
            tasks[name] = get_task(name)
        except UserError as error:
            problems[name] = str(error)
    return tasks, problems


def describe_task(name: str) -> str:
    """A one-line description of a task; for a task of another package, the first line of its docstring."""
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    lines = (_factory(name)[1].__doc__ or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else ""


def task_settings(name: str) -> list[str]:
    """Names of the settings that `get_task` accepts for a task.

    Raises:
        UserError: The task does not exist, or is a plugin's task that cannot be used.
    """
    _, kind, fixed = _factory(name)
    return [field.name for field in fields(kind) if field.name != "name" and field.name not in fixed]


def _factory(name: str) -> tuple[Callable[..., Task], Any, dict[str, Any]]:
    """The callable that makes a task, the task's dataclass, and those of its fields that are fixed."""
    make = load_plugin(GROUP, name, own=_TASKS, is_kind=_makes_tasks, expected=_EXPECTED) or _TASKS.get(name)
    if make is None:
        close = difflib.get_close_matches(name, list_tasks(), n=1)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else "longlens bench list shows all, or install the plugin that provides it"
        )
        raise UserError(f"no task {name!r}: {hint}")
    return (make, make.func, make.keywords) if isinstance(make, partial) else (make, make, {})


def _makes_tasks(found: Any) -> bool:
    kind = found.func if isinstance(found, partial) else found
    return isinstance(kind, type) and issubclass(kind, Task) and is_dataclass(kind)


def get_task(name: str, **settings: Any) -> Task:
    """Creates a task by name.

    Args:
        name: One of `list_tasks`.
        settings: Settings of the task, such as ``haystack``, ``data_dir``, ``lines``, ``depths``; docs/tasks.md lists
            them.

    Raises:
        UserError: The task or a setting is unknown, a value is invalid, or the task is a plugin's and cannot be used.
    """
    make, kind, _ = _factory(name)
    free = task_settings(name)
    for setting in settings:
        if setting not in free:
            known = f"it has {', '.join(free)}" if free else "it has none"
            raise UserError(f"task {name!r} has no setting {setting!r}: {known}")
    check_values(settings, kind, f"`{{}}` of task {name!r}")
    if name in _TASKS:
        return make(name=name, **settings)
    package = plugin_tasks()[name]
    with library_errors(f"cannot make task {name!r} of the package {package}", f"fix or uninstall {package}"):
        task = make(name=name, **settings)
    if task.suite in _own_suites():
        raise UserError(
            f"task {name!r} of the package {package} has the suite {task.suite!r}, which is one of longlens: "
            f"rename it in the package, or uninstall {package}"
        )
    return task


@lru_cache(maxsize=1)
def _own_suites() -> frozenset[str]:
    return frozenset(make(name=name).suite for name, make in _TASKS.items())
