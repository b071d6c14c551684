"""The ``longlens bench list`` command: lists tasks and suites, or the details of one task."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated

import typer

from longlens.cli import options as o

if TYPE_CHECKING:
    from longlens.bench.selection import HarnessTask
    from longlens.tasks.base import Task

WIDTH = 80
LENGTH = 4096
"""Default length of the suggested run, in tokens."""
LABEL = 12
"""Width of the label column of the details."""


def bench_list(
    wanted: Annotated[
        str | None,
        typer.Argument(help="A task, suite or category, or a part of a task's name.  [default: all]", metavar="NAME"),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """List tasks and suites, and the data that they need; for a single task, its details.

    Example: longlens bench list ruler
    """
    from longlens.bench.selection import find_tasks
    from longlens.cli.console import print_json, printable
    from longlens.cli.next_step import suggest
    from longlens.tasks import describe_task, plugin_tasks, task_settings, usable_tasks

    packages = plugin_tasks()
    tasks, unusable = usable_tasks()
    found = find_tasks(wanted, tasks)
    suites = list(dict.fromkeys(task.suite for task in tasks.values()))
    listed = {name: tasks[name] for name in sorted(found.tasks, key=lambda name: suites.index(tasks[name].suite))}
    if as_json:
        rows = [
            {
                "task": name,
                "suite": task.suite,
                "category": task.category,
                "metric": _metric(task),
                "settings": task_settings(name),
                "package": packages.get(name, "longlens"),
                "description": describe_task(name),
                "data": _data(task),
            }
            for name, task in listed.items()
        ]
        harness = {task.name: task.task for task in found.harness}
        print_json({"schema_version": 1, "tasks": rows, "unusable": unusable, "lm_eval": harness})
        return
    if wanted is not None and len(found.tasks) + len(found.harness) == 1:
        for name, task in listed.items():
            _print_details(name, describe_task(name), _details(name, task, packages.get(name)))
        for one in found.harness:
            _print_details(one.name, "a task of lm-evaluation-harness", _harness_details(one))
        (name,) = (*found.tasks, *(one.name for one in found.harness))
        suggest(_first_run(name, list(listed.values())))
        return
    _print_tasks(listed, packages)
    if wanted is None:
        for problem in unusable.values():
            print(f"cannot be used: {printable(problem)}")
    if found.harness:
        print("lm-evaluation-harness (all others of its tasks: lm_eval:NAME)")
        _print_columns((one.name, one.task, one.metric) for one in found.harness)
        print()
    if any(map(_data, listed.values())):
        print("data: hub is downloaded, or read from --data-dir; folder needs --data-dir.")
    example = next(iter((*found.tasks, *(one.name for one in found.harness))))
    suggest(("bench", "list", example), _first_run(wanted if wanted in suites else example, list(listed.values())))


def _print_tasks(tasks: Mapping[str, Task], packages: Mapping[str, str]) -> None:
    """Prints tasks by suite: name, source of the data, and a description."""
    from longlens.cli.console import printable
    from longlens.tasks import describe_task

    suites: dict[str, list[str]] = {}
    for name, task in tasks.items():
        package = f", of the package {packages[name]}" if name in packages else ""
        suites.setdefault(f"{task.suite}{package}", []).append(name)
    for suite, names in suites.items():
        print(printable(f"{suite} ({len(names)} task{'' if len(names) == 1 else 's'})"))
        _print_columns((name, _data(tasks[name]), describe_task(name)) for name in names)
        print()


def _print_columns(rows: Iterable[tuple[str, str, str]]) -> None:
    """Prints three indented columns and shortens the last one to the page width."""
    from longlens.cli.console import printable

    lines = [tuple(map(printable, row)) for row in rows]
    first, second = (max((len(line[at]) for line in lines), default=0) for at in (0, 1))
    for name, middle, text in lines:
        line = f"  {name:{first}}  {middle:{second}}{'  ' if second else ''}"
        room = max(WIDTH - len(line), 20)
        print(f"{line}{textwrap.shorten(text, room, placeholder='...')}".rstrip())


def _metric(task: Task) -> str:
    from longlens.tasks.base import JudgedTask

    return task.judged_metric if isinstance(task, JudgedTask) and task.needs_judge else task.metric


def _data(task: Task) -> str:
    """Returns ``hub`` if all files can be downloaded, ``folder`` if the user must provide some, else ``""``."""
    from longlens.tasks.data import FolderTask

    files = task.files() if isinstance(task, FolderTask) else ()
    return "" if not files else "hub" if all(file.hub for file in files) else "folder"


def _details(name: str, task: Task, package: str | None) -> dict[str, list[str]]:
    from longlens.tasks import task_settings
    from longlens.tasks.base import JudgedTask
    from longlens.tasks.data import FolderTask

    defaults = {field.name: field.default for field in fields(task)}  # type: ignore[arg-type]  # tasks are dataclasses
    settings = [
        setting
        if defaults[setting] in (MISSING, None, "") or len(str(defaults[setting])) > WIDTH // 2
        else f"{setting}={defaults[setting]}"
        for setting in task_settings(name)
    ]
    # For some tasks the default is the number of rows in the data, which a list does not read.
    counted = None if isinstance(getattr(type(task), "default_samples", None), property) and _data(task) else task
    judged = isinstance(task, JudgedTask)
    data = [
        line
        for file in (task.files() if isinstance(task, FolderTask) else ())
        for line in (f"{' or '.join(file.names)}: {file.schema}", f"from {file.source}")
    ]
    if data:
        kind = "downloaded from the Hub; or in --data-dir" if _data(task) == "hub" else "put into a folder, --data-dir"
        data.insert(0, f"{kind}:")
    if "haystack" in task_settings(name):
        data.append("--haystack: text that hides the needles (default: state_of_the_union)")
    return {
        "suite": [task.suite],
        "category": [task.category],
        "package": [package or ""],
        "metric": [_metric(task) + (" (bench grade RUN --judge MODEL)" if judged else "")],
        "length": ["--length TOKENS, which samples fill" if task.fills else "that of its data"],
        "samples": ["" if counted is None else f"{counted.default_samples:,}"],
        "answer": [f"{task.max_new_tokens:,} tokens at most"],
        "template": [task.template],
        "too long": [task.overlong],
        "settings": [", ".join(settings)],
        "data": data,
    }


def _harness_details(task: HarnessTask) -> dict[str, list[str]]:
    return {
        "its name": [task.task],
        "metric": [task.metric],
        "examples": ["" if task.few_shot is None else str(task.few_shot)],
        "length": ["--length TOKENS" if task.by_length else "that of its data"],
        "data": ["downloaded from the Hub by lm-evaluation-harness"],
    }


def _print_details(name: str, text: str, details: Mapping[str, list[str]]) -> None:
    from longlens.cli.console import printable

    print(printable(f"{name}: {text}" if text else name))
    for label, parts in details.items():
        lines = [
            line
            for part in parts
            for line in textwrap.wrap(
                printable(part), WIDTH - LABEL - 2, break_long_words=False, break_on_hyphens=False
            )
        ]
        for number, line in enumerate(lines):
            print(f"  {label if number == 0 else '':{LABEL}}{line}")


def _first_run(name: str, tasks: Sequence[Task]) -> list[object]:
    """Returns a command that runs the task, or the suite of these tasks, with the required options."""
    from longlens.bench.selection import HARNESS

    shown = [task for task in tasks if name in (task.name, task.suite)]
    lengths = [min(getattr(task, "sizes", [LENGTH])) for task in shown if task.fills or hasattr(task, "sizes")]
    if name in HARNESS and HARNESS[name].by_length:
        lengths = [LENGTH]
    length = ["--length", max(lengths)] if lengths else []
    folder = ["--data-dir", "DATA"] if any(_data(task) == "folder" for task in shown) else []
    return ["bench", "run", name, "--model", "MODEL", *length, *folder, "-o", f"runs/{name}"]
