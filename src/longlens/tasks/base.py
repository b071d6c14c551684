"""Defines tasks: a task builds samples, scores predictions, and aggregates scores. No model is run here.

Tasks that are scored by a model have classes of their own (`JudgedTask`, `CitedTask`). The caller chooses the model. A
score that the model does not provide is missing from the sample's scores, so that no mean mixes judged and unjudged
samples without reporting the number of each.
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
# Files are identified by their content, not by their paths.
_NO_SETTING = frozenset(("name", "data_dir", "haystack", "prompts_dir"))

Judge = Callable[[Sequence[str]], Sequence[str]]
"""A function from prompts for a language model to its replies, one per prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A question about a long text.

    Attributes:
        id: Identifier: task, length, seed and index.
        prompt: The text before the answer prefix.
        answer_prefix: The beginning of the answer; a model continues ``prompt + answer_prefix``.
        answers: The right answers; the task's metric defines whether any or all of them are expected.
        answer_spans: ``[start, end)`` of the answers in characters of ``prompt + answer_prefix``.
        length: Tokens of ``prompt + answer_prefix`` as the tokenizer counts a text by default (including the BOS that
            it adds), plus the task's `max_new_tokens`.
        context_span: ``[start, end)`` in characters of ``prompt``: the long text that the question is about, without
            instructions and demonstrations; None if a task has no such part.
        metadata: Task and settings, seed, index, requested length, units, depths of the needles in percent of the
            text, hashes of haystack or data; ``distractors`` if a task has wrong answers of the right kind to
            choose from, and ``distractors_in_text``, the number of them that occur in the text (those come first);
            ``cut`` if the text was truncated, see `longlens.tasks.truncation`.
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
    """A task of a benchmark. Its settings are the fields of its dataclass.

    Attributes:
        name: One of `longlens.tasks.list_tasks`.
        max_new_tokens: Maximum number of tokens of an answer; part of a sample's length.
        suite: The benchmark that contains the task, such as ``ruler``; the task's own name if it is not part of one.
        category: The task's part of the suite's average, such as HELMET's ``rag``; empty if the suite has no parts.
        metric: The score that the benchmark reports, a key of the result of `aggregate`, and of `score` unless `joint`.
        joint: Whether that score is computed over all samples together, such as the F1 of a set. Single samples then
            have no such score.
        stop: Strings that end an answer, in addition to the end of text.
        template: How the benchmark sends its prompts to a chat model: ``none``, unchanged; ``chat``, the prompt as a
            user message; ``chat-prefix``, the same with the answer prefix appended; ``prefill``, with the answer prefix
            as the beginning of the reply.
        fills: Whether samples are built to the requested length. Otherwise their length depends on the data, and
            `overlong` is the policy for a sample that is longer than requested.
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
        """Number of samples of the benchmark."""

    @property
    @abstractmethod
    def unit_tokens(self) -> int:
        """Maximum number of tokens that one more unit adds to a prompt, if each token has at least one byte."""

    @abstractmethod
    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """The plan of a sample, which can be drafted with any number of units.

        Args:
            length: Tokens of prompt, answer prefix and answer, for settings that change with the length.
            seed: Seed of all random choices.
            index: Index of the sample.
            tokens: Token counter, for parts that are fitted within the sample.
        """

    @abstractmethod
    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Scores from 0 to 1 of a prediction, the text that a model generates after the answer prefix."""

    def target(self, sample: Sample) -> str | None:
        """The continuation of a model that answers correctly; None if there is more than one right answer.

        It starts like the answer, for example with a space if the answer prefix ends in a word.
        """
        return (" " if sample.answer_prefix else "") + sample.answers[0] if len(sample.answers) == 1 else None

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means in percent over the samples that have a score: ``{name: 100 * mean of scores[i][name]}``.

        Raises:
            UserError: The list of scores is empty.
        """
        if not scores:
            raise UserError(f"{self.name}: no scores to aggregate; score at least one sample")
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
        """Builds samples 0 to ``samples - 1``, each a function of task, length, seed, index and tokenizer.

        ``length - reserve - unit_tokens < sample.length <= length - reserve``, unless settings or data fix the units.

        Args:
            length: Maximum tokens of prompt, answer prefix and answer. None only if settings or data fix the units.
            samples: Number of samples; by default the benchmark's own.
            seed: Seed of all random choices.
            tokenizer: A transformers tokenizer.
            reserve: Tokens reserved for a chat template.
            overlong: Policy for a sample that settings or data make too long, one of
                `longlens.tasks.truncation.POLICIES`; the benchmark's own policy by default. With ``skip`` there are
                fewer samples, and the indexes in their ids have gaps.

        Raises:
            UserError: The length is too short (the message contains the shortest valid length), a value is invalid, or
                the data of the task is missing or too small.
        """
        builder = Builder(
            self, length=length, samples=samples, seed=seed, tokenizer=tokenizer, reserve=reserve, overlong=overlong
        )
        made = map(builder.sample, range(builder.samples))
        return [sample for sample in made if sample is not None]


class JudgedTask(Task):
    """A task whose benchmark asks a language model for the score.

    `score` returns scores that need no judge, under names of their own, as a fallback.

    Attributes:
        judged_metric: The score that the benchmark reports, a key of the result of `judged`.
        needs_judge: Whether the benchmark reports only the judge's score, so that there is no score without a judge.
        judge_tokens: Maximum tokens of a judge's reply in the benchmark; 0 if the benchmark does not set it.
    """

    judged_metric: str
    needs_judge: bool = False
    judge_tokens: int = 0

    @property
    def prompts_by(self) -> str:
        """Origin of the judge's prompts. Scores from prompts of different origins are not combined."""
        return "own"

    @abstractmethod
    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """Prompts for the judge; empty if the task has no question for the judge about this sample."""

    @abstractmethod
    def judged(self, sample: Sample, prediction: str, replies: Sequence[str]) -> dict[str, float]:
        """Scores from 0 to 1, parsed from the judge's replies; empty if one of them cannot be parsed."""


class CitedTask(Task):
    """A task whose benchmark checks whether cited documents support the statements of a prediction."""

    @abstractmethod
    def cited(self, sample: Sample, prediction: str, entails: Entails) -> dict[str, float]:
        """Scores from 0 to 1; empty if the prediction contains no statement to support."""


class Builder:
    """Builds the samples of `Task.build` one at a time, each from its index only, with the arguments of `Task.build`.

    Attributes:
        samples: Number of samples.

    Raises:
        UserError: A value is invalid, or the tokenizer has no vocabulary.
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
        """Task, length and seed: the common prefix of the ids of samples. No sample is built for it."""
        size: int | str | None = self._length
        if size is None and self._task.fills:
            plan = self._plan(None, 0)
            self._require_fixed(plan)
            size = f"{plan.minimum}units"
        return f"{self._task.name}-{size or 'whole'}-{self._seed}"

    def sample(self, index: int) -> Sample | None:
        """Builds one sample; None if it is too long and the policy is ``skip``.

        Raises:
            UserError: As in `Task.build`.
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
                f"{self._task.name}: the data ends {slack:,} tokens before `length={length}`: add data, or pass "
                f"`length={length - slack}` or less"
            )
        return fitted

    def _too_short(self, length: int) -> UserError:
        """Finds the shortest length at which all samples fit. Settings may change with the length, so it iterates."""
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
    """Rejects a tokenizer without a vocabulary: its texts have equal lengths, and no number of units fills a length."""
    try:
        ids = tokenizer([_PROBE], add_special_tokens=False, verbose=False)["input_ids"][0]
        known = len({int(token) for token in ids})
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} returns no token ids for a text ({one_line(error)}); expected a "
            "tokenizer of transformers, such as longlens.models.load_tokenizer('smollm2')"
        ) from error
    if known < 4:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} makes {known} different tokens of {_PROBE!r}: it has no vocabulary "
            "for English text: load the model's tokenizer, such as longlens.models.load_tokenizer('smollm2')"
        )


def _task_fields(task: Any) -> dict[str, Any]:
    """Settings of a task that determine its samples, except the paths of its files."""
    values = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in _NO_SETTING}
    return {name: value for name, value in values.items() if value is None or isinstance(value, (int, float, str))}


def complete_mean(values: Iterable[float | None]) -> float | None:
    """The mean, or None if a value is missing: a mean of the others would be another metric under the same name."""
    known = list(values)
    there = [value for value in known if value is not None]
    return sum(there) / len(there) if len(there) == len(known) else None


def check_least(task: Task, **least: int) -> None:
    """Checks settings of a task that are numbers or None against their minimums.

    Raises:
        UserError: A setting is below its minimum.
    """
    for name, limit in least.items():
        value = getattr(task, name)
        if value is not None and value < limit:
            raise UserError(f"`{name}={value}`; expected at least {limit}")


def draws(task: str, seed: int, index: int, stream: str) -> Random:
    """Random generator for one sample and one purpose, independent of order, length and machine."""
    key = json.dumps([task, seed, index, stream])
    return Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
