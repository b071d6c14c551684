"""Tasks that lm-evaluation-harness has as it is: short-context suites and BABILong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from longlens.bench.names import HarnessTask, choose
from longlens.bench.samples import files_sha256
from longlens.bench.settings import BenchSettings, Progress
from longlens.bench.store import BenchRun, read_harness
from longlens.errors import UserError

LENGTHS = tuple(1024 * thousands for thousands in (1, 2, 4, 8, 16, 32, 64, 128))
"""Lengths of which BABILong has data on the hub, RMT-team/babilong-1k-samples."""


def check_harness(task: HarnessTask, settings: BenchSettings) -> None:
    """Checks what can be known before a model is loaded.

    Raises:
        UserError: The task cannot be asked in that way.
    """
    if settings.mode != "generate":
        raise UserError(f"{task.name} is lm-evaluation-harness's and has a mode of its own: leave --mode out")
    if settings.overlong in ("skip", "context-only"):
        raise UserError(
            f"{task.name} is lm-evaluation-harness's: --overlong {settings.overlong} is not possible, as its prompts "
            "are whole texts: use error, middle or left"
        )
    if task.by_length and not settings.lengths:
        raise UserError(f"{task.name} has data of several lengths: pass --length, such as --length 4096")
    if task.by_length:
        for length in settings.lengths:
            if length not in LENGTHS:
                known = ", ".join(map(str, LENGTHS))
                raise UserError(f"{task.name} has no data of length {length}: pass --length with some of {known}")
    elif settings.lengths and not _takes_length(settings):
        raise UserError(f"{task.name} has prompts of one length, which --length does not change: leave it out")
    for what, value, least in (("samples", settings.samples, 1), ("few_shot", settings.few_shot, 0)):
        if value is not None and value < least:
            raise UserError(f"{what}={value}; expected at least {least}")


def _takes_length(settings: BenchSettings) -> bool:
    """Whether a length is for another one of the tasks that are run."""
    found = choose(name for name in settings.tasks if not name.endswith(".jsonl"))
    return bool(found.tasks) or any(task.by_length for task in found.harness)


def harness_notes(tasks: Iterable[HarnessTask], settings: BenchSettings) -> list[str]:
    """What a user should know before these tasks are run."""
    fixed = [task.name for task in tasks if settings.lengths and not task.by_length]
    return [f"--length is not for {', '.join(fixed)}, whose data fixes its lengths"] if fixed else []


def run_harness(
    run: BenchRun,
    open_engine: Callable[[], Any],
    task: HarnessTask,
    settings: BenchSettings,
    *,
    told: Callable[[str], None],
    progress: Progress,
) -> None:
    """Runs a task and keeps its answers as they come, and its results.

    An answer is looked up by a hash of what is asked, with all options, so that the same call goes on after a kill. A
    task whose result is there, of the same settings and files, is not run again.

    Raises:
        UserError: The data cannot be had, or a prompt is too long.
    """
    data_dir = settings.settings.get("data_dir")
    asked: dict[str, Any] = {
        "samples": settings.samples,
        "few_shot": task.few_shot if settings.few_shot is None else settings.few_shot,
        "chat_template": settings.template not in ("none", "auto"),
        "overlong": settings.overlong or "error",
    }
    files = files_sha256(Path(data_dir)) if data_dir is not None and Path(data_dir).exists() else None
    results = {row["name"]: row for row in read_harness(run.path, "result")}

    def keep(key: str, answer: Any) -> None:
        run.append("harness", {"kind": "answer", "key": key, "answer": answer})
        progress.answered()

    for length in [f"{length // 1024}k" for length in settings.lengths] if task.by_length else [None]:
        name = task.name if length is None else f"{task.name}-{length}"
        result = results.get(name, {})
        if result.get("asked") != asked | {"files": files}:
            result = _run(run, open_engine(), task, length, asked, data_dir, keep, partial(progress.asked, name))
            run.append("harness", {"kind": "result", "name": name, "asked": asked | {"files": files}, **result})
        if result["num_cut"]:
            told(f"{name}: {result['num_cut']} prompts were too long and are shortened")


def _run(
    run: BenchRun,
    engine: Any,
    task: HarnessTask,
    length: str | None,
    asked: dict[str, Any],
    data_dir: str | None,
    keep: Callable[[str, Any], None],
    begun: Callable[[int], None],
) -> dict[str, Any]:
    from longlens.bench.lm_eval.tasks import run_task

    run.begin(engine.info)
    known = {row["key"]: row["answer"] for row in read_harness(run.path, "answer")}
    return run_task(engine, task, length=length, data_dir=data_dir, known=known, keep=keep, asked=begun, **asked)
