"""Tasks: benchmarks as builders of samples and scores of predictions. No model is run here.

```python
task = get_task("niah_single_2", haystack="essays/")
samples = task.build(length=32768, samples=100, seed=42, tokenizer=tokenizer)
scores = [task.score(sample, answer) for sample, answer in zip(samples, answers)]
task.aggregate(scores)
```
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from longlens.errors import UserError
from longlens.settings.recipe import check_values
from longlens.tasks.bamboo import TASKS as BAMBOO_TASKS
from longlens.tasks.base import Sample as Sample
from longlens.tasks.base import Task as Task
from longlens.tasks.helmet import TASKS as HELMET_TASKS
from longlens.tasks.infinitebench import TASKS as INFINITEBENCH_TASKS
from longlens.tasks.leval import TASKS as LEVAL_TASKS
from longlens.tasks.longbench import TASKS as LONGBENCH_TASKS
from longlens.tasks.longeval import PAPER_LINES, LongEvalLines, LongEvalTopics
from longlens.tasks.loogle import TASKS as LOOGLE_TASKS
from longlens.tasks.niah import NeedleGrid
from longlens.tasks.ruler import RULER as RULER
from longlens.tasks.scrolls import TASKS as SCROLLS_TASKS

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
    """Names that `get_task` knows."""
    return list(_TASKS)


def task_settings(name: str) -> list[str]:
    """Names of the settings that `get_task` takes for a task.

    Raises:
        UserError: No such task.
    """
    kind, fixed = _kind(name)
    return [field.name for field in fields(kind) if field.name != "name" and field.name not in fixed]


def _kind(name: str) -> tuple[Any, dict[str, Any]]:
    """The dataclass of a task, and those of its fields that are fixed."""
    if name not in _TASKS:
        close = difflib.get_close_matches(name, _TASKS, n=1)
        known = f"did you mean {close[0]!r}?" if close else "longlens bench list shows all"
        raise UserError(f"no task {name!r}: {known}")
    made = _TASKS[name]
    return (made.func, made.keywords) if isinstance(made, partial) else (made, {})


def get_task(name: str, **settings: Any) -> Task:
    """A task.

    Args:
        name: One of `list_tasks`.
        settings: Of the task, such as ``haystack``, ``data_dir``, ``lines``, ``depths``; docs/tasks.md lists them.

    Raises:
        UserError: No such task or setting, or a value that makes no sense.
    """
    free = task_settings(name)
    for setting in settings:
        if setting not in free:
            known = f"it has {', '.join(free)}" if free else "it has none"
            raise UserError(f"task {name!r} has no setting {setting!r}: {known}")
    check_values(settings, _kind(name)[0], f"`{{}}` of task {name!r}")
    return _TASKS[name](name=name, **settings)
