"""A task made of plain words, an engine that says what it is told, and the answers of a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from longlens.bench.engine import EngineSettings, ModelAnswer
from longlens.bench.prompts import PromptSettings
from longlens.bench.selection import BenchSettings
from longlens.settings.options import Loading
from longlens.tasks.base import Sample, Task
from longlens.tasks.fitting import Draft, Whole

ASK = "Which number is it?"
PREFIX = "\nAnswer:"


def split(group, options):
    """The options that are fields of a group of settings, and the others."""
    names = {field.name for field in fields(group)}
    own = {name: value for name, value in options.items() if name in names}
    return group(**own), {name: value for name, value in options.items() if name not in names}


def bench_settings(**options):
    """What is asked; settings of prompts stand beside the others."""
    prompts, others = split(PromptSettings, options)
    return BenchSettings(**others, prompts=prompts)


def engine_settings(**options):
    """Which model answers; how it is loaded stands beside the rest."""
    loading, others = split(Loading, options)
    return EngineSettings(**others, loading=loading)


@dataclass(frozen=True, kw_only=True)
class Toy(Task):
    """One word after the other, and a question."""

    name: str = "toy"
    words: int = 40
    prefix: str = PREFIX

    suite = "toy"
    metric = "accuracy"
    max_new_tokens = 10
    default_samples = 3
    stop = ("\n",)
    fills = False
    unit_tokens = 1

    def plan(self, *, length, seed, index, tokens):
        begin = f"Task {index}. "
        text = " ".join(f"w{number:03d}" for number in range(self.words))
        return Whole(
            Draft(
                prompt=f"{begin}{text}\n{ASK}",
                answer_prefix=self.prefix,
                answers=[str(index)],
                answer_spans=[],
                context_span=(len(begin), len(begin) + len(text)),
                metadata={"distractors": ["77", "88"]},
            )
        )

    def score(self, sample, prediction):
        return {"accuracy": float(prediction.strip() == sample.answers[0])}


def sample(task="niah_single_1", number=0, answers=("7",), length=4096, **metadata):
    """A sample as it would be in a run."""
    made = {"task": task, "settings": {}, "seed": 42, "index": number, "requested_length": length}
    return Sample(
        id=f"{task}-{length}-42-{number}",
        prompt="a prompt",
        answer_prefix="",
        answers=list(answers),
        answer_spans=[],
        length=length,
        metadata=made | metadata,
    )


class FakeEngine:
    """Writes down what it is asked; fails after so many answers, where told so."""

    def __init__(self, text="no idea", *, logprob=None, fails_after=None):
        self.text, self.logprob, self.fails_after = text, logprob, fails_after
        self.asked: list = []
        self.calls = 0
        self.info = {"architecture": "Fake"}

    def __call__(self, settings, limit):
        """Stands for `open_engine`."""
        return self

    def answer(self, requests, on_answer):
        self.calls += 1
        for request in requests:
            if self.fails_after is not None and len(self.asked) >= self.fails_after:
                raise RuntimeError("out of memory")
            self.asked.append(request)
            if request.continuation is None:
                text = self.text(request) if callable(self.text) else self.text
                on_answer(ModelAnswer(request.key, text=text, is_truncated=False))
            else:
                value = self.logprob(request) if self.logprob else -1.0
                on_answer(ModelAnswer(request.key, logprob=value, is_greedy=value > -0.5))

    @property
    def keys(self):
        return [request.key for request in self.asked]


def rows(folder, kind="answers"):
    """Whole lines of all parts."""
    found = []
    for path in sorted((Path(folder) / kind).glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return found
