"""Chat templates: the text of a conversation, and which characters of it are the assistant's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from longlens.chat_template import render
from longlens.errors import UserError, one_line

Turns = Literal["together", "apart"]
Messages = Sequence[Mapping[str, Any]]

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_EXCERPT = 40


class Span(NamedTuple):
    """Characters ``[start, end)``."""

    start: int
    end: int


class ChatTemplate:
    """The chat template of a tokenizer.

    Where the template marks what the assistant generates, as ``{% generation %} … {% endgeneration %}``, the marks are
    taken as they are. Elsewhere the turn of the assistant at message i is found by writing the conversation twice::

        prompt = template(messages[:i], add_generation_prompt=True)
        turn   = template(messages[: i + 1])
        assert turn.startswith(prompt) and template(messages).startswith(turn)
        span   = [len(prompt), len(turn))

    Nothing is searched for in the text, so no content can pass for a turn.

    Transformers' own ``return_assistant_tokens_mask`` is not used: it asks the tokenizer for the token of a span's last
    character, and where the tokenizer trims white space off its offsets and has none, it takes all the rest for the
    assistant's.

    Args:
        tokenizer: Of transformers.

    Raises:
        UserError: It has no chat template, or several and none that is called ``default``.
    """

    def __init__(self, tokenizer: Any) -> None:
        name = type(tokenizer).__name__
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"the tokenizer ({name}) has no chat template: take the tokenizer of the model's instruct version, or "
                "set tokenizer.chat_template to the text of a template"
            )
        try:
            self._source: str = tokenizer.get_chat_template()
        except ValueError as error:  # several, none of them the default
            raise UserError(f"{name}: {one_line(error)}: set tokenizer.chat_template to one of them") from error
        self._tokenizer = tokenizer
        self._has_marks = _MARKS.search(self._source) is not None
        self._is_checked = False

    def write(
        self, messages: Messages, answers: Sequence[int], *, tools: Sequence[Any] | None, turns: Turns
    ) -> tuple[str, list[Span]]:
        """The text of a conversation and the spans of its answers.

        Args:
            messages: The last one is an answer.
            answers: Places of the assistant's messages, none of them 0.
            tools: Functions for the template.
            turns: ``together`` for all answers, ``apart`` for the last one.

        Raises:
            UserError: The template raises an error, or the turns cannot be told apart.
        """
        text, marks = self._render(messages, tools, marks=True)
        if self._has_marks and turns == "together":
            return text, marks
        wanted = answers if turns == "together" else answers[-1:]
        spans = [self._span(text, messages, answer, tools) for answer in wanted]
        if self._has_marks:
            (turn,) = spans
            return text, [Span(max(mark.start, turn.start), mark.end) for mark in marks if mark.end > turn.start]
        return text, spans

    def _span(self, text: str, messages: Messages, answer: int, tools: Sequence[Any] | None) -> Span:
        prompt, _ = self._render(messages[:answer], tools, prompt=True)
        is_last = answer + 1 == len(messages)
        turn = text if is_last else self._render(messages[: answer + 1], tools)[0]
        self._check_end(messages[: answer + 1], turn, prompt, tools)
        if not turn.startswith(prompt):
            raise UserError(
                f"the chat template writes the prompt for message {answer + 1} otherwise than the conversation goes on "
                f"({_difference(prompt, turn)}), so the answer cannot be told from it: set tokenizer.chat_template to "
                "one that adds to what it wrote, or that has {% generation %} marks"
            )
        if not text.startswith(turn):
            raise UserError(
                f"the chat template writes message {answer + 1} otherwise once others follow "
                f"({_difference(turn, text)}), as templates do that remove earlier reasoning: pass turns='apart' for a "
                "row of each answer, or set tokenizer.chat_template to one that has {% generation %} marks"
            )
        return Span(len(prompt), len(turn))

    def _check_end(self, messages: Messages, turn: str, prompt: str, tools: Sequence[Any] | None) -> None:
        """Refuses a template that writes the header of the next answer behind a finished one, asked or not.

        The first template of Llama-3-Instruct did: models learn to write the header themselves.
        """
        if self._is_checked or self._has_marks:
            return
        self._is_checked = True
        if self._render(messages[:-1], tools)[0] != prompt:
            return  # the header is written where it is asked for
        following = {"role": "user", "content": "next"}
        if not self._render([*messages, following], tools)[0].startswith(turn):
            raise UserError(
                f"the chat template ends a finished conversation with {turn[-_EXCERPT:]!r}, which is not there when "
                "the user goes on (a prompt for the next answer, which would be learned): set tokenizer.chat_template "
                "to one that writes it with add_generation_prompt alone"
            )

    def _render(
        self, messages: Messages, tools: Sequence[Any] | None, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        found = render(self._tokenizer, messages, tools=tools, add_generation_prompt=prompt, source=self._source)
        return found.text, [Span(*span) for span in found.generated] if marks else []


def _difference(expected: str, found: str) -> str:
    """Where the second text leaves the first."""
    same = next((at for at, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(expected), len(found)) if same is None else same
    ends = [text[at : at + _EXCERPT] for text in (expected, found)]
    return f"{ends[0]!r} against {ends[1]!r} after {expected[max(0, at - _EXCERPT) : at]!r}"
