"""What a task is: it builds samples, scores a prediction, and sums scores up. No model is run here.

Scores that a model gives have tasks of their own kind (`JudgedTask`, `CitedTask`). Which model that is, the caller
says. What is not given stays out of a sample's scores, so that no mean mixes judged and unjudged samples without saying
how many there are of each.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from random import Random
from typing import Any

from longlens.errors import UserError, one_line
from longlens.settings.options import SEED
from longlens.tasks.fitting import Fitted, Plan, TokenCounter, fit, shortest
from longlens.tasks.metrics.helmet import Entails
from longlens.tasks.truncation import check_policy, truncate

_PROBE = "Each of these words is another one, and so are 7 numbers."
# Files are identified by what is in them, not by their places.
_NO_SETTING = frozenset(("name", "data_dir", "haystack", "prompts_dir"))

Judge = Callable[[Sequence[str]], Sequence[str]]
"""Prompts to a language model -> its replies, one for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A question on a long text.

    Attributes:
        id: Names it: task, length, seed and index.
        prompt: Everything before the answer prefix.
        answer_prefix: How the answer begins; a model continues ``prompt + answer_prefix``.
        answers: The right answers; a task's metric says whether any or all of them are wanted.
        answer_spans: ``[start, end)`` in characters of ``prompt + answer_prefix``: where the answers are in it.
        length: Tokens of ``prompt + answer_prefix`` as the tokenizer counts a text by default (thus with the BOS that
            it puts there), plus the task's `max_new_tokens`.
        context_span: ``[start, end)`` in characters of ``prompt``: the long text that the question is about, without
            instructions and demonstrations; None if a task has no such part.
        metadata: Task and settings, seed, index, requested length, units, depths of the needles in percent of the
            text, hashes of haystack or data; ``distractors`` where a task has wrong answers of the right kind to
            choose from, and ``distractors_in_text``, how many of them are in the text (those come first); ``cut``
            where the text was shortened, see `longlens.tasks.truncation`.
    """

    id: str
    prompt: str
    answer_prefix: str
    answers: list[str]
    answer_spans: list[tuple[int, int]]
    length: int
    context_span: tuple[int, int] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """A benchmark's task. Its settings are the fields of the dataclass that it is.

    Attributes:
        name: One of `longlens.tasks.list_tasks`.
        max_new_tokens: Tokens that an answer may have; part of a sample's length.
        suite: The benchmark that it is a part of, such as ``ruler``; its own name where it is one by itself.
        category: Its part of the suite's average, such as HELMET's ``rag``; empty if the suite has no parts.
        metric: The score that the benchmark reports, a key of what `aggregate` gives, and `score` unless `joint`.
        joint: Whether that score is of all samples together, as F1 over a set is, so that single ones have none.
        stop: Where an answer ends, besides at the end of text.
        template: How the benchmark puts its prompts to a chat model: ``none``, as they are; ``chat``, the prompt as a
            user's message; ``chat-prefix``, with the answer prefix at its end; ``prefill``, with the answer prefix as
            the begin of the reply.
        fills: Whether samples are made as long as asked for; else they are as long as their data, and
            `overlong` says what is done with one that is longer.
        overlong: The benchmark's own policy for samples that are too long, one of `longlens.tasks.truncation.POLICIES`.
        omission: Text that replaces the removed part of a context.
    """

    name: str
    max_new_tokens: int
    suite: str
    metric: str
    joint: bool = False
    category: str = ""
    stop: tuple[str, ...] = ()
    template: str = "prefill"
    fills: bool = True
    overlong: str = "error"
    omission: str = ""

    @property
    @abstractmethod
    def default_samples(self) -> int:
        """As many samples as the benchmark has."""

    @property
    @abstractmethod
    def unit_tokens(self) -> int:
        """Tokens by which one unit more makes a prompt longer, at most, if a token has at least a byte."""

    @abstractmethod
    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """The sample for any number of units.

        Args:
            length: Of prompt, answer prefix and answer; where settings change with it.
            seed: Seed of all random choices.
            index: Index of the sample.
            tokens: Counts, for what is fitted within the sample.
        """

    @abstractmethod
    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Numbers from 0 to 1 for what a model wrote after the answer prefix."""

    def target(self, sample: Sample) -> str | None:
        """What a model that answers rightly continues with; None if no single text is the right one.

        It begins as the answer would, thus with a space where the answer prefix ends in a word.
        """
        return (" " if sample.answer_prefix else "") + sample.answers[0] if len(sample.answers) == 1 else None

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means in percent over the samples that have a score: ``{name: 100 * mean of scores[i][name]}``.

        Raises:
            UserError: There are none.
        """
        if not scores:
            raise UserError(f"{self.name}: no scores to sum up; score at least one sample")
        values: dict[str, list[float]] = {}
        for row in scores:
            for name, value in row.items():
                values.setdefault(name, []).append(value)
        return {name: sum(column) / len(column) * 100 for name, column in values.items()}

    def build(
        self,
        *,
        length: int | None = None,
        samples: int | None = None,
        seed: int = SEED,
        tokenizer: Any,
        reserve: int = 0,
        overlong: str | None = None,
    ) -> list[Sample]:
        """Samples 0 to ``samples - 1``; each is a function of the task, length, seed, its index and the tokenizer.

        ``length - reserve - unit_tokens < sample.length <= length - reserve``, unless settings or data fix the units.

        Args:
            length: Tokens of prompt, answer prefix and answer, at most. None only where settings or data fix the units.
            samples: Number of samples; by default the benchmark's own.
            seed: Seed of all random choices.
            tokenizer: A transformers tokenizer.
            reserve: Tokens that are left for a chat template.
            overlong: What to do with a sample that settings or data make too long, one of
                `longlens.tasks.truncation.POLICIES`; the benchmark's own policy by default. With ``skip`` there are
                fewer samples, and the indexes in their ids have gaps.

        Raises:
            UserError: The length is too short, which the message says how long it has to be; or values that make no
                sense; or the data of the task is missing or too small.
        """
        builder = Builder(
            self, length=length, samples=samples, seed=seed, tokenizer=tokenizer, reserve=reserve, overlong=overlong
        )
        made = map(builder.sample, range(builder.samples))
        return [sample for sample in made if sample is not None]


class JudgedTask(Task):
    """A task whose benchmark asks a language model for the score.

    `score` gives what needs no judge, as a fallback under names of its own.

    Attributes:
        judged_metric: The score that the benchmark reports, a key of what `judged` gives.
        needs_judge: Whether the benchmark reports the judge's score alone, so that there is no score without it.
        judge_tokens: TokenCounter that the benchmark gives a judge's reply; 0 where it does not say.
    """

    judged_metric: str
    needs_judge: bool = False
    judge_tokens: int = 0

    @property
    def prompts_by(self) -> str:
        """Whose prompts the judge gets; scores by different ones are not put together."""
        return "own"

    @abstractmethod
    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """What the judge is asked; none where the task has nothing to ask about this sample."""

    @abstractmethod
    def judged(self, sample: Sample, prediction: str, replies: Sequence[str]) -> dict[str, float]:
        """Numbers from 0 to 1 for the judge's replies; empty if one of them cannot be read."""


class CitedTask(Task):
    """A task whose benchmark asks whether cited documents support what is said."""

    @abstractmethod
    def cited(self, sample: Sample, prediction: str, entails: Entails) -> dict[str, float]:
        """Numbers from 0 to 1; empty if the prediction says nothing that could be supported."""


class Builder:
    """Builds the samples of `Task.build` one at a time, each from its index alone; arguments are those of `Task.build`.

    Attributes:
        samples: How many there are.

    Raises:
        UserError: A value that makes no sense, or a tokenizer without a vocabulary.
    """

    def __init__(
        self,
        task: Task,
        *,
        length: int | None,
        samples: int | None,
        seed: int,
        tokenizer: Any,
        reserve: int,
        overlong: str | None,
    ) -> None:
        self._task, self._length, self._seed, self._reserve = task, length, seed, reserve
        self._policy = check_policy(task.overlong if overlong is None else overlong)
        self.samples = task.default_samples if samples is None else samples
        for what, value, least in (("samples", self.samples, 1), ("reserve", reserve, 0), ("length", length, 1)):
            if value is not None and value < least:
                raise UserError(f"`{what}={value}`; expected at least {least}")
        self._tokens = TokenCounter(tokenizer)
        _require_vocabulary(tokenizer)
        self._spent = task.max_new_tokens + reserve

    @cached_property
    def name(self) -> str:
        """Task, length and seed, with which the ids of samples begin; no sample is built for it."""
        size: int | str | None = self._length
        if size is None and self._task.fills:
            plan = self._plan(None, 0)
            self._require_fixed(plan)
            size = f"{plan.minimum}units"
        return f"{self._task.name}-{size or 'whole'}-{self._seed}"

    def sample(self, index: int) -> Sample | None:
        """One sample; None if it is too long and the policy is to skip it.

        Raises:
            UserError: What `Task.build` raises.
        """
        task, length = self._task, self._length
        fitted = self._fit(index)
        draft, counted = fitted.draft, fitted.tokens
        if length is not None and counted > length - self._spent:
            if self._policy == "skip":
                return None
            if self._policy == "error" or task.fills:
                raise self._too_short(length)
            draft, counted = truncate(draft, self._tokens, length - self._spent, self._policy, task.omission)
        made = {"task": task.name, "settings": _task_fields(task), "seed": self._seed, "index": index}
        made |= {"requested_length": length, "reserve": self._reserve, "units": fitted.units}
        return Sample(
            id=f"{self.name}-{index}",
            prompt=draft.prompt,
            answer_prefix=draft.answer_prefix,
            answers=list(draft.answers),
            answer_spans=list(draft.answer_spans),
            context_span=draft.context_span,
            length=counted + task.max_new_tokens,
            metadata=made | dict(draft.metadata),
        )

    def _plan(self, length: int | None, index: int) -> Plan:
        room = None if length is None else length - self._reserve
        return self._task.plan(length=room, seed=self._seed, index=index, tokens=self._tokens)

    def _require_fixed(self, plan: Plan) -> None:
        if plan.minimum != plan.maximum:
            raise UserError(f"{self._task.name} needs a length in tokens, such as `length=4096`")

    def _fit(self, index: int) -> Fitted:
        length, plan = self._length, self._plan(self._length, index)
        if length is None:
            self._require_fixed(plan)
            return fit(plan, self._tokens, None)
        fitted = fit(plan, self._tokens, length - self._spent)
        slack = length - self._spent - fitted.tokens
        if fitted.units == plan.maximum != plan.minimum and slack >= self._task.unit_tokens:
            raise UserError(
                f"{self._task.name}: the data ends {slack:,} tokens before `length={length}`: give more of it, or "
                f"`length={length - slack}` at most"
            )
        return fitted

    def _too_short(self, length: int) -> UserError:
        """Names the least length at which all samples fit; settings may change with the length, thus the loop."""
        needed = length
        while True:
            least = max(shortest(self._plan(needed, index), self._tokens) for index in range(self.samples))
            if least + self._spent <= needed:
                break
            needed = least + self._spent
        return UserError(
            f"`length={length}` is too short for {self.samples} samples of {self._task.name}: with this tokenizer they "
            f"need at least {needed} tokens, {self._spent} of which are for answer and template: pass "
            f"`length={needed}` or more"
        )


def _require_vocabulary(tokenizer: Any) -> None:
    """Without one a text is as long as any other, and no number of units would ever fill a length."""
    try:
        ids = tokenizer([_PROBE], add_special_tokens=False, verbose=False)["input_ids"][0]
        known = len({int(token) for token in ids})
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} gives no token ids for a text ({one_line(error)}); expected a "
            "tokenizer of transformers, such as longlens.models.load_tokenizer('smollm2')"
        ) from error
    if known < 4:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} makes {known} different tokens of {_PROBE!r}: it has no vocabulary "
            "for English text: load the one of the model, such as longlens.models.load_tokenizer('smollm2')"
        )


def _task_fields(task: Any) -> dict[str, Any]:
    """Settings of a task that decide its samples, besides its files."""
    values = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in _NO_SETTING}
    return {name: value for name, value in values.items() if value is None or isinstance(value, (int, float, str))}


def complete_mean(values: Iterable[float | None]) -> float | None:
    """The mean, where no value is missing: over the others it would be another number under the same name."""
    known = list(values)
    there = [value for value in known if value is not None]
    return sum(there) / len(there) if len(there) == len(known) else None


def check_least(task: Task, **least: int) -> None:
    """Checks settings of a task that are numbers or None: each is at least so much.

    Raises:
        UserError: One is less.
    """
    for name, limit in least.items():
        value = getattr(task, name)
        if value is not None and value < limit:
            raise UserError(f"`{name}={value}`; expected at least {limit}")


def draws(task: str, seed: int, index: int, stream: str) -> Random:
    """Random numbers of one sample and one purpose: the same ones in any order, at any length, on any machine."""
    key = json.dumps([task, seed, index, stream])
    return Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
