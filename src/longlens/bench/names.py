"""Names of benchmarks: our own tasks, suites of them, and tasks that lm-evaluation-harness has as it is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks

PREFIX = "lm_eval:"
"""Before any name of lm-evaluation-harness's, for tasks that are not in `HARNESS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    """A task or group of lm-evaluation-harness.

    Attributes:
        name: Ours.
        task: Its; several with commas between them.
        metric: The number that papers report; empty for a group without one.
        few_shot: Examples in the prompt; the task's own number unless given.
        by_length: Whether its data comes in lengths, such as ``4k``, of which it takes one at a time.
        about: What it is.
    """

    name: str
    task: str
    metric: str
    few_shot: int | None = None
    by_length: bool = False
    about: str = ""


# Short-context tasks: LongCE's paper, table 10, names MMLU, ARC-C, RACE, BBH, TruthfulQA and CommonsenseQA; the
# lecture's tables of ProLong name HellaSwag, MMLU, ARC-c, WinoGrande and GSM8K. Neither says how many examples a prompt
# has: those of the Open LLM Leaderboard's first version are taken (ARC 25, HellaSwag 10, MMLU, WinoGrande and GSM8K 5),
# else the task's own.
HARNESS: dict[str, HarnessTask] = {
    task.name: task
    for task in (
        HarnessTask(name="mmlu", task="mmlu", metric="acc", few_shot=5, about="57 subjects, four choices"),
        HarnessTask(
            name="arc_challenge", task="arc_challenge", metric="acc_norm", few_shot=25, about="science questions"
        ),
        HarnessTask(name="race", task="race", metric="acc", about="reading comprehension"),
        HarnessTask(name="bbh", task="bbh_cot_fewshot", metric="exact_match", about="BIG-Bench Hard, with reasoning"),
        HarnessTask(name="truthfulqa", task="truthfulqa_mc2", metric="acc", about="TruthfulQA, several right answers"),
        HarnessTask(name="commonsense_qa", task="commonsense_qa", metric="acc", about="five choices"),
        HarnessTask(name="hellaswag", task="hellaswag", metric="acc_norm", few_shot=10, about="how a text goes on"),
        HarnessTask(name="winogrande", task="winogrande", metric="acc", few_shot=5, about="whom a pronoun means"),
        HarnessTask(name="gsm8k", task="gsm8k", metric="exact_match", few_shot=5, about="school mathematics"),
        # Its group babilong has qa1 to qa20, and the data of qa6 to qa20 is of no length: this one has qa1 to qa5.
        HarnessTask(
            name="babilong",
            task="babilong_longctx",
            metric="acc",
            by_length=True,
            about="reasoning over facts in long books",
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What names stand for.

    Attributes:
        tasks: Our own tasks.
        harness: Those of lm-evaluation-harness.
    """

    tasks: tuple[str, ...]
    harness: tuple[HarnessTask, ...]


@lru_cache(maxsize=1)
def suites() -> Mapping[str, tuple[str, ...]]:
    """Tasks by suite, in the order of the registry."""
    found: dict[str, list[str]] = {}
    for name in list_tasks():
        found.setdefault(get_task(name).suite, []).append(name)
    return {suite: tuple(names) for suite, names in found.items()}


def choose(names: Iterable[str]) -> Chosen:
    """Tasks and suites by name, each once.

    Raises:
        UserError: There is no such task or suite; says which name is near.
    """
    tasks: dict[str, None] = {}
    harness: dict[str, HarnessTask] = {}
    for name in names:
        if name in list_tasks():
            tasks[name] = None
        elif name in suites():
            tasks |= dict.fromkeys(suites()[name])
        elif name in HARNESS:
            harness[name] = HARNESS[name]
        elif name.startswith(PREFIX) and len(name) > len(PREFIX):
            harness[name] = HarnessTask(name=name, task=name.removeprefix(PREFIX), metric="")
        else:
            known = [*suites(), *list_tasks(), *HARNESS]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "longlens bench list shows all"
            raise UserError(f"no task or suite {name!r}: {hint}")
    return Chosen(tasks=tuple(tasks), harness=tuple(harness.values()))
