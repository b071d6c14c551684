"""From a task's plans to its samples."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import Any

from longlens.errors import UserError, one_line
from longlens.tasks.base import Sample, Task
from longlens.tasks.fitting import Fitted, Plan, Tokens, fit, shortest
from longlens.tasks.overlong import check_policy, shortened

_PROBE = "Each of these words is another one, and so are 7 numbers."
# Files are told by what is in them, not by their places.
_NO_SETTING = frozenset(("name", "data_dir", "haystack", "prompts_dir"))


def built(
    task: Task,
    *,
    length: int | None,
    samples: int | None,
    seed: int,
    tokenizer: Any,
    reserve: int,
    overlong: str | None,
) -> list[Sample]:
    """What `Task.build` says."""
    builder = Builder(
        task, length=length, samples=samples, seed=seed, tokenizer=tokenizer, reserve=reserve, overlong=overlong
    )
    made = (builder.sample(index) for index in range(builder.samples))
    return [sample for sample in made if sample is not None]


class Builder:
    """Builds the samples of `Task.build` one at a time, each from its index alone.

    Args:
        task: As all other arguments: see `Task.build`.

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
                raise UserError(f"{what}={value}; expected at least {least}")
        self._tokens = Tokens(tokenizer)
        _require_vocabulary(tokenizer)
        self._spent = task.max_new_tokens + reserve

    @cached_property
    def name(self) -> str:
        """Task, length and seed, with which the ids of samples begin; no sample is built for it."""
        size: int | str | None = self._length
        if size is None and self._task.fills:
            plan = self._task.plan(length=None, seed=self._seed, index=0, tokens=self._tokens)
            _require_fixed(self._task, plan)
            size = f"{plan.minimum}units"
        return f"{self._task.name}-{size or 'whole'}-{self._seed}"

    def sample(self, index: int) -> Sample | None:
        """One sample; None where it is too long and the policy is to skip it.

        Raises:
            UserError: As `Task.build`.
        """
        task, length, tokens, spent = self._task, self._length, self._tokens, self._spent
        fitted = _fitted(task, length, self._seed, index, tokens, spent)
        draft = fitted.draft
        if length is not None and fitted.tokens > length - spent:
            if self._policy == "skip":
                return None
            if self._policy == "error" or task.fills:
                raise _too_short(task, length, self.samples, self._seed, tokens, spent)
            draft, counted = shortened(draft, tokens, length - spent, self._policy, task.omission)
            fitted = fitted._replace(tokens=counted)
        made = {"task": task.name, "settings": task_fields(task), "seed": self._seed, "index": index}
        made |= {"requested_length": length, "reserve": self._reserve, "units": fitted.units}
        return Sample(
            id=f"{self.name}-{index}",
            prompt=draft.prompt,
            answer_prefix=draft.answer_prefix,
            answers=list(draft.answers),
            answer_spans=list(draft.answer_spans),
            context_span=draft.context_span,
            length=fitted.tokens + task.max_new_tokens,
            metadata=made | dict(draft.metadata),
        )


def _require_vocabulary(tokenizer: Any) -> None:
    """Without one a text is as long as any other, and no number of units would ever fill a length."""
    try:
        known = len(
            {int(token) for token in tokenizer([_PROBE], add_special_tokens=False, verbose=False)["input_ids"][0]}
        )
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


def _require_fixed(task: Task, plan: Plan) -> None:
    if plan.minimum != plan.maximum:
        raise UserError(f"{task.name} needs a length in tokens, such as length=4096")


def _fitted(task: Task, length: int | None, seed: int, index: int, tokens: Tokens, spent: int) -> Fitted:
    room = None if length is None else length - spent + task.max_new_tokens
    plan = task.plan(length=room, seed=seed, index=index, tokens=tokens)
    fixed = plan.minimum == plan.maximum
    if length is None:
        _require_fixed(task, plan)
        return fit(plan, tokens, None)
    fitted = fit(plan, tokens, length - spent)
    if fitted.units == plan.maximum and not fixed:
        slack = length - spent - fitted.tokens
        if slack >= task.unit_tokens:
            raise UserError(
                f"{task.name}: the data ends {slack:,} tokens before length={length}: give more of it, or "
                f"length={length - slack} at most"
            )
    return fitted


def _too_short(task: Task, length: int | None, samples: int, seed: int, tokens: Tokens, spent: int) -> UserError:
    """Names the least length at which all samples fit; settings may change with the length, thus the loop."""
    needed = length or 0
    while True:
        room = needed - spent + task.max_new_tokens
        plans = (task.plan(length=room, seed=seed, index=index, tokens=tokens) for index in range(samples))
        least = max(shortest(plan, tokens) for plan in plans) + spent
        if least <= needed:
            break
        needed = least
    return UserError(
        f"length={length} is too short for {samples} samples of {task.name}: with this tokenizer they need at least "
        f"{needed} tokens, {spent} of which are for answer and template: pass length={needed} or more"
    )


def task_fields(task: Any) -> dict[str, Any]:
    """Settings of a task that decide its samples, besides its files."""
    values = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in _NO_SETTING}
    return {name: value for name, value in values.items() if value is None or isinstance(value, (int, float, str))}
