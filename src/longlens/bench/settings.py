"""What a run of benchmarks asks, and who hears how it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from longlens.reasoning import Marks
from longlens.tasks.base import SEED


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is asked, and how.

    Attributes:
        tasks: Names of tasks and suites, or files of samples that `longlens bench build` wrote.
        lengths: Budgets in tokens, each of them for every task; none where settings or data fix the lengths.
        samples: Of each task and length; the benchmark's own number unless given.
        seed: Of the samples.
        mode: One of `longlens.bench.prompts.MODES`.
        template: One of `longlens.bench.prompts.TEMPLATES`.
        template_arguments: More arguments of the tokenizer's chat template, such as ``enable_thinking``.
        overlong: One of `longlens.tasks.truncation.POLICIES`; each task's own unless given.
        think_tokens: More tokens for an answer, for reasoning before it.
        think_marks: Begin and end of reasoning, beside those of `longlens.reasoning.MARKS`.
        few_shot: Examples of tasks of lm-evaluation-harness, instead of their own number.
        settings: Of tasks, such as ``haystack`` and ``data_dir``; each has to be one of at least one task.
        keep_prompts: Whether the exact prompts are stored.
    """

    tasks: Sequence[str]
    lengths: Sequence[int] = ()
    samples: int | None = None
    seed: int = SEED
    mode: str = "generate"
    template: str = "auto"
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    overlong: str | None = None
    think_tokens: int = 0
    think_marks: Marks | None = None
    few_shot: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep_prompts: bool = True


class Progress(Protocol):
    """Hears how a run goes."""

    def asked(self, title: str, requests: int) -> None:
        """So many requests of a task are about to be answered."""

    def answered(self) -> None:
        """One of them is."""
