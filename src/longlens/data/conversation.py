"""Conversations: read from a row, rendered by a chat template, and encoded with labels for the assistant's turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.chat_template import render
from longlens.data.store import IGNORED, Columns, size_of
from longlens.errors import UserError, one_line, shown
from longlens.tokenization import TextEncoder

ASSISTANT = "assistant"
Ints = npt.NDArray[np.int64]
Messages = Sequence[Mapping[str, Any]]
Turns = Literal["together", "apart"]
_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_EXCERPT = 40


class Span(NamedTuple):
    """``[start, end)``, in characters or tokens."""

    start: int
    end: int


class Conversation(NamedTuple):
    """Messages and the functions that they may call, with their location in the data."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    place: str

    def find_answers(self) -> list[int]:
        """Indices of the assistant's messages that have a prompt before them."""
        return [at for at, message in enumerate(self.messages) if at and message["role"] == ASSISTANT]

    def until(self, answer: int) -> Conversation:
        """The conversation up to and including this message."""
        return self._replace(messages=self.messages[: answer + 1])


def read_conversation(row: Mapping[str, Any], place: str) -> Conversation:
    """The conversation of a row, see `longlens.data.chat.chat_dataset`.

    Raises:
        UserError: The row has no conversation.
    """
    if row.get("messages") is not None:
        messages = row["messages"]
    elif row.get("prompt") is not None and row.get("completion") is not None:
        messages = _join(row["prompt"], row["completion"], place)
    else:
        there = ", ".join(shown(str(key)) for key in list(row)[:10]) or "no field"
        raise UserError(
            f"{place} has {there}: expected messages (a list of role and content), or prompt and completion: "
            "rename the fields"
        )
    if not isinstance(messages, list) or not messages:
        raise UserError(f"messages of {place} is {repr(messages)[:100]}, expected a list of role and content")
    tools = row.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"tools of {place} is a {type(tools).__name__}, expected a list of functions as JSON objects")
    return Conversation([_message(message, place) for message in messages], tools or None, place)


def _join(prompt: Any, completion: Any, place: str) -> list[Any]:
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": completion}]
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion]
    raise UserError(
        f"prompt and completion of {place} are a {type(prompt).__name__} and a {type(completion).__name__}: expected "
        "two strings, or two lists of messages"
    )


def _message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(
            f"{place} has the message {repr(message)[:100]}: expected an object with role and content, such as "
            '{"role": "user", "content": "…"}'
        )
    content = message.get("content")
    if not isinstance(content, str) and (content is not None or set(message) <= {"role", "content"}):
        raise UserError(
            f"{place} has a message of {shown(message['role'])} with a {type(content).__name__} as content: "
            "expected a string"
        )
    # Parquet fills in keys that only other messages have, and a template treats null as a value.
    return {str(name): value for name, value in message.items() if value is not None}


class ChatTemplate:
    """The chat template of a tokenizer.

    If the template marks what the assistant generates with ``{% generation %} … {% endgeneration %}``, these marks are
    used. Otherwise the assistant's turn at message i is found by rendering the conversation twice::

        prompt = template(messages[:i], add_generation_prompt=True)
        turn   = template(messages[: i + 1])
        assert turn.startswith(prompt) and template(messages).startswith(turn)
        span   = [len(prompt), len(turn))

    The text is never searched, so no content can be mistaken for a turn.

    Transformers' own ``return_assistant_tokens_mask`` is not used: it looks up the token of a span's last character,
    and if there is none because the tokenizer trims whitespace from its offsets, it treats all the rest as the
    assistant's.

    Args:
        tokenizer: A transformers tokenizer.

    Raises:
        UserError: It has no chat template, or several, none of which is called ``default``.
    """

    def __init__(self, tokenizer: Any) -> None:
        name = type(tokenizer).__name__
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"the tokenizer ({name}) has no chat template: use the tokenizer of the model's instruct version, or "
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
            answers: Indices of the assistant's messages, none of them 0.
            tools: Functions for the template.
            turns: ``together`` for all answers, ``apart`` for the last one.

        Raises:
            UserError: The template raises an error, or the turns cannot be distinguished.
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
                f"the chat template writes the prompt for message {answer + 1} differently than the conversation "
                f"continues ({_difference(prompt, turn)}), so the answer cannot be located: set "
                "tokenizer.chat_template to one that only appends to the prompt, or that has {% generation %} marks"
            )
        if not text.startswith(turn):
            raise UserError(
                f"the chat template writes message {answer + 1} differently once other messages follow "
                f"({_difference(turn, text)}), as templates do that remove earlier reasoning: pass "
                "`turns='apart'` for a row of each answer, or set tokenizer.chat_template to one that has "
                "{% generation %} marks"
            )
        return Span(len(prompt), len(turn))

    def _check_end(self, messages: Messages, turn: str, prompt: str, tools: Sequence[Any] | None) -> None:
        """Rejects a template that always writes the header of the next answer after a finished one.

        The first template of Llama-3-Instruct did so: models would learn to write the header themselves.
        """
        if self._is_checked or self._has_marks:
            return
        self._is_checked = True
        if self._render(messages[:-1], tools)[0] != prompt:
            return  # the header is written only on request
        following = {"role": "user", "content": "next"}
        if not self._render([*messages, following], tools)[0].startswith(turn):
            raise UserError(
                f"the chat template ends a finished conversation with {turn[-_EXCERPT:]!r}, which is missing when the "
                "user continues (a prompt for the next answer, which would be learned): set tokenizer.chat_template "
                "to one that writes it only with add_generation_prompt"
            )

    def _render(
        self, messages: Messages, tools: Sequence[Any] | None, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        found = render(self._tokenizer, messages, tools=tools, add_generation_prompt=prompt, source=self._source)
        return found.text, [Span(*span) for span in found.generated] if marks else []


def _difference(expected: str, found: str) -> str:
    """Describes where the second text diverges from the first."""
    same = next((at for at, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(expected), len(found)) if same is None else same
    ends = [text[at : at + _EXCERPT] for text in (expected, found)]
    return f"{ends[0]!r} against {ends[1]!r} after {expected[max(0, at - _EXCERPT) : at]!r}"


class ChatRow(NamedTuple):
    """A row of ``input_ids`` and ``labels``.

    Attributes:
        columns: The row.
        answers: Number of answers with labels.
        merged_turns: Number of answers that begin inside a token, see `longlens.data.chat.ChatCounts`.
    """

    columns: Columns
    answers: int
    merged_turns: int

    @property
    def size(self) -> int:
        """Number of tokens."""
        return size_of(self.columns)

    @property
    def learned(self) -> int:
        """Number of tokens with a label."""
        return int((self.columns["labels"] != IGNORED).sum())


class ChatEncoder:
    """A tokenizer and its chat template: conversations to columns.

    Args:
        tokenizer: A transformers tokenizer.
        turns: ``together`` for labels of all answers, ``apart`` for labels of the last one only.

    Raises:
        UserError: It has no chat template.
    """

    def __init__(self, tokenizer: Any, *, turns: Turns = "together") -> None:
        self._template = ChatTemplate(tokenizer)
        self._encoder = TextEncoder(tokenizer)
        self.turns = turns
        self._added = frozenset(tokenizer.added_tokens_decoder)

    def encode(self, conversation: Conversation) -> ChatRow:
        """Tokens and labels of a conversation that ends with an answer; its text is tokenized as a whole.

        Raises:
            UserError: The template cannot write it, or its turns cannot be distinguished.
        """
        try:
            text, spans = self._template.write(
                conversation.messages, conversation.find_answers(), tools=conversation.tools, turns=self.turns
            )
            token_ids, char_spans = self._encoder.encode(text)
        except UserError as error:
            raise UserError(f"{conversation.place}: {error}") from error
        learned = np.zeros(len(token_ids), dtype=bool)
        merged = 0
        for span in spans:
            inside = _tokens_inside(span, char_spans)
            merged += bool((inside & (char_spans[:, 0] < span.start)).any())
            learned |= self._trim_white_space(inside, text, token_ids, char_spans)
        ids = token_ids.astype(np.int32)
        answers = len(conversation.find_answers()) if self.turns == "together" else 1
        return ChatRow({"input_ids": ids, "labels": np.where(learned, ids, np.int32(IGNORED))}, answers, merged)

    def _trim_white_space(
        self, inside: npt.NDArray[np.bool_], text: str, token_ids: Ints, char_spans: Ints
    ) -> npt.NDArray[np.bool_]:
        """Excludes whitespace after the token that ends a turn: generation stops before it."""
        last = places = np.flatnonzero(inside)
        while len(last) and text[slice(*char_spans[last[-1]])].isspace():
            last = last[:-1]
        if not len(last) or int(token_ids[last[-1]]) not in self._added:
            return inside
        trimmed: npt.NDArray[np.bool_] = inside.copy()
        trimmed[places[len(last) :]] = False
        return trimmed


def _tokens_inside(span: Span, char_spans: Ints) -> npt.NDArray[np.bool_]:
    """Tokens that contain a character of the span, or are empty and lie inside it."""
    starts, ends = char_spans[:, 0], char_spans[:, 1]
    empty = (starts == ends) & (starts >= span.start)
    inside: npt.NDArray[np.bool_] = (starts < span.end) & ((ends > span.start) | empty)
    return inside
