"""From a task's plans to its samples."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from longlens.errors import UserError, one_line
from longlens.tasks.base import Sample, Task
from longlens.tasks.fitting import Fitted, Tokens, fit, shortest
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
    policy = check_policy(task.overlong if overlong is None else overlong)
    samples = task.default_samples if samples is None else samples
    for what, value, least in (("samples", samples, 1), ("reserve", reserve, 0), ("length", length, 1)):
        if value is not None and value < least:
            raise UserError(f"{what}={value}; expected at least {least}")
    tokens = Tokens(tokenizer)
    _require_vocabulary(tokenizer)
    spent = task.max_new_tokens + reserve
    rows = []
    for index in range(samples):
        fitted = _fitted(task, length, seed, index, tokens, spent)
        draft = fitted.draft
        if length is not None and fitted.tokens > length - spent:
            if policy == "skip":
                continue
            if policy == "error" or task.fills:
                raise _too_short(task, length, samples, seed, tokens, spent)
            draft, counted = shortened(draft, tokens, length - spent, policy, task.omission)
            fitted = fitted._replace(tokens=counted)
        made = {"task": task.name, "settings": _settings(task), "seed": seed, "index": index}
        made |= {"requested_length": length, "reserve": reserve, "units": fitted.units}
        rows.append(
            Sample(
                id=f"{task.name}-{length or _size(task, fitted.units)}-{seed}-{index}",
                prompt=draft.prompt,
                answer_prefix=draft.answer_prefix,
                answers=list(draft.answers),
                answer_spans=list(draft.answer_spans),
                context_span=draft.context_span,
                length=fitted.tokens + task.max_new_tokens,
                metadata=made | dict(draft.metadata),
            )
        )
    return rows


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


def _size(task: Task, units: int) -> str:
    return f"{units}units" if task.fills else "whole"


def _fitted(task: Task, length: int | None, seed: int, index: int, tokens: Tokens, spent: int) -> Fitted:
    room = None if length is None else length - spent + task.max_new_tokens
    plan = task.plan(length=room, seed=seed, index=index, tokens=tokens)
    fixed = plan.minimum == plan.maximum
    if length is None:
        if not fixed:
            raise UserError(f"{task.name} needs a length in tokens, such as length=4096")
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


def _settings(task: Any) -> dict[str, Any]:
    values = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in _NO_SETTING}
    return {name: value for name, value in values.items() if value is None or isinstance(value, (int, float, str))}
