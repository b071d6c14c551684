"""Renders chat templates: programs that come with a model and may loop, allocate or fail as they like.

`render` is the only place where they are run. It uses the sandbox of transformers, and adds bounds: the text and every
intermediate value have at most `SLACK` characters more than the input, loops and calls take at most `STEPS` steps, and
rendering stops after `SECONDS`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

from longlens.errors import UserError, library_errors

SLACK = 2**20
"""Number of characters that a template may add to its input."""
STEPS = 2**20
"""Number of loop items and calls allowed, in addition to one per character of the input."""
SECONDS = 30.0
_STEP = "fix the conversation, or set another tokenizer.chat_template"
_WIDE = re.compile(r"\d{6,}|\*")
_ITEMS = "longlens_items"
_VALUE = "longlens_value"


class Rendered(NamedTuple):
    """The text of a conversation.

    Attributes:
        text: The text, including everything that the template adds.
        generated: ``[start, end)`` in characters of each ``{% generation %}`` block.
    """

    text: str
    generated: list[tuple[int, int]]


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    source: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Rendered:
    """Renders messages as ``tokenizer.apply_chat_template(messages, tokenize=False)`` writes it, within bounds.

    Args:
        tokenizer: A transformers tokenizer.
        messages: Conversation; a key whose value is None counts as missing.
        tools: Functions for the template, as JSON schemas.
        add_generation_prompt: Whether the text ends where the assistant's reply begins.
        source: The template; the tokenizer's own by default.
        arguments: Additional variables for the template, such as ``enable_thinking``.

    Raises:
        UserError: The template is broken, raises an error, or exceeds its bounds.
    """
    from transformers.utils import chat_template_utils

    roles = ", ".join(str(message.get("role")) for message in messages)
    with library_errors(f"the chat template cannot write messages of {roles[:200]}", _STEP):
        values = _plain({**tokenizer.special_tokens_map, **(arguments or {})})
        plain = [{key: value for key, value in _plain(message).items() if value is not None} for message in messages]
        # Newer versions of transformers pass reasoning under every name that templates read.
        alias: Callable[[Any], Any] = getattr(chat_template_utils, "_alias_reasoning_fields", lambda chat: chat)
        values |= {"messages": alias(plain), "tools": None if tools is None else _plain(list(tools))}
        values |= {"documents": None, "add_generation_prompt": add_generation_prompt}
        template = _compiled(tokenizer.get_chat_template() if source is None else source)
        token = _budget.set(_Budget(_characters(values)))
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        try:
            with template.environment.activate_tracker(blocks, spans):
                for block in template.generate(**values):
                    _budget.get().add(len(block))
                    blocks.append(block)
        finally:
            _budget.reset(token)
        return Rendered("".join(blocks), spans)


def template_tokens(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
    """Token ids of `render`'s text; the template itself writes the special tokens.

    Raises:
        UserError: As `render`, or the tokenizer fails.
    """
    text = render(tokenizer, messages, **options).text
    with library_errors(f"the tokenizer ({type(tokenizer).__name__}) cannot encode a conversation", _STEP):
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


class _Budget:
    """What remains of the limits of one rendering."""

    def __init__(self, characters: int) -> None:
        self.limit = characters + SLACK
        self._left = self.limit
        self._steps = STEPS + characters
        self._until = time.monotonic() + SECONDS

    def add(self, characters: int) -> None:
        """Counts characters of the text that were written."""
        self._left -= characters
        if self._left < 0:
            raise UserError(f"the chat template writes more than {self.limit:,} characters: {_STEP}")

    def step(self, count: int = 1) -> None:
        """Counts loop items or calls."""
        self._steps -= count
        if self._steps < 0 or time.monotonic() > self._until:
            raise UserError(f"the chat template takes more than {STEPS:,} steps or {SECONDS:.0f} s: {_STEP}")

    def check(self, size: int) -> None:
        """Checks the size of a value, before the value is created where its size is known in advance."""
        if size > self.limit:
            raise UserError(f"the chat template makes a value of more than {self.limit:,} characters: {_STEP}")


_budget: ContextVar[_Budget] = ContextVar("budget")


def _plain(value: Any) -> Any:
    """Converts to JSON types only: other objects have methods that a sandbox does not know."""
    return json.loads(json.dumps(value, default=lambda other: f"<{type(other).__name__}>"))


def _characters(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_characters(key) + _characters(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str) else 1


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """Compiles the template so that every loop and every string concatenation is counted and no constant is folded."""
    from jinja2 import nodes

    environment = _environment()
    tree = environment.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, _ITEMS, [], [], None, None)
    _checked_joins(tree)
    return environment.template_class.from_code(environment, environment.compile(tree), environment.make_globals(None))


def _checked_joins(node: Any) -> None:
    from jinja2 import nodes

    for field, value in node.iter_fields():
        for at, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, nodes.Node):
                continue
            _checked_joins(child)
            if isinstance(child, nodes.Concat):
                wrapped = nodes.Filter(child, _VALUE, [], [], None, None)
                if at is None:
                    setattr(node, field, wrapped)
                else:
                    value[at] = wrapped


@lru_cache(maxsize=1)
def _environment() -> Any:
    """The sandbox of transformers, with bounds."""
    from jinja2 import pass_context
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template("{# longlens.chat_template #}").environment
    sandboxed_call = environment.call

    def call(context: Any, function: Any, *arguments: Any, **options: Any) -> Any:
        _budget.get().step()
        # The sandbox wraps str.format in a function.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(owner, str):
            _check_arguments(function.__name__, owner, (*arguments, *options.values()))
        return _checked(sandboxed_call(context, function, *arguments, **options))

    def bounded(name: str, made: Any) -> Any:
        passed = getattr(made, "jinja_pass_arg", None)

        # It depends on the context, so that it is not computed while a template is compiled.
        @pass_context
        def applied(context: Any, *arguments: Any, **options: Any) -> Any:
            _budget.get().step()
            _check_arguments(name, arguments[0] if arguments else "", (*arguments[1:], *options.values()))
            first = {"context": context, "eval_context": context.eval_ctx, "environment": environment}
            given = arguments if passed is None else (first[passed.name], *arguments)
            return _checked(made(*given, **options))

        return applied

    environment.call = call
    environment.concat = _joined
    environment.intercepted_binops = frozenset(environment.default_binop_table)
    environment.binop_table |= {op: _bounded_operator(op, made) for op, made in environment.binop_table.items()}
    environment.filters.update({name: bounded(name, made) for name, made in environment.filters.items()})
    environment.filters.update({_ITEMS: _items, _VALUE: _checked})
    del environment.globals["lipsum"]
    return environment


def _items(values: Any) -> Any:
    budget = _budget.get()
    if hasattr(values, "__len__"):
        budget.step(len(values))
        return values
    return _counted(iter(values), budget)


def _counted(values: Iterator[Any], budget: _Budget) -> Iterator[Any]:
    for value in values:
        budget.step()
        yield value


def _joined(parts: Iterable[str]) -> str:
    texts = list(parts)
    _budget.get().check(sum(map(len, texts)))
    return "".join(texts)


def _checked(value: Any) -> Any:
    if isinstance(value, (str, list, tuple, dict)):
        _budget.get().check(len(value))
    return value


def _bounded_operator(operator: str, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def bounded(left: Any, right: Any) -> Any:
        budget = _budget.get()
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif isinstance(left, int) and isinstance(right, int):
            if operator == "**":
                budget.check(left.bit_length() * abs(right))
            else:
                budget.check(left.bit_length() + right.bit_length())
        elif operator == "*":
            budget.check(_size(left) * _size(right))
        elif operator == "+":
            budget.check(_size(left) + _size(right))
        return _checked(apply(left, right))

    return bounded


def _size(value: Any) -> int:
    return value if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 1


def _check_arguments(name: str, value: Any, arguments: Sequence[Any]) -> None:
    """Limits string methods and filters that can create a value much larger than their arguments."""
    check = _budget.get().check
    numbers = [number for number in arguments if isinstance(number, int)]
    texts = [text for text in arguments if isinstance(text, str)]
    lines = value.count("\n") + value.count("\t") + 1 if isinstance(value, str) else 1
    for number in numbers:
        check(number * (lines if name in ("indent", "expandtabs", "wordwrap") else 1))
    if name == "tojson" and any(number > 100 for number in numbers):
        check(_budget.get().limit + 1)
    elif name == "format" and isinstance(value, str):
        _check_format(value)
    elif name == "replace" and len(texts) == 2:
        check(len(value) + str(value).count(texts[0]) * len(texts[1]))
    elif name == "join":
        check(_size(value) * max([1, *map(_size, arguments)]))
    elif name in ("indent", "wordwrap") and texts:
        check(len(value) + (lines + len(value) * (name == "wordwrap")) * max(map(len, texts)))


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise UserError(f"the chat template formats numbers with a width of 100,000 or more: {_STEP}")
