"""A conversation of a row, and its tokens with labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.data.columns import IGNORED, Columns, size_of
from longlens.data.template import ChatTemplate, Span, Turns
from longlens.errors import UserError, shown
from longlens.tokenization import TextEncoder

ASSISTANT = "assistant"
Ints = npt.NDArray[np.int64]


class Conversation(NamedTuple):
    """Messages and the functions that they may call, with the place where they were found."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    place: str

    def answers(self) -> list[int]:
        """Which messages are the assistant's and have a prompt before them."""
        return [at for at, message in enumerate(self.messages) if at and message["role"] == ASSISTANT]

    def until(self, answer: int) -> Conversation:
        """The conversation up to this message and with it."""
        return self._replace(messages=self.messages[: answer + 1])


def read_conversation(row: Mapping[str, Any], place: str) -> Conversation:
    """The conversation of a row, see `longlens.data.chat.chat_dataset`.

    Raises:
        UserError: It has none.
    """
    if row.get("messages") is not None:
        messages = row["messages"]
    elif row.get("prompt") is not None and row.get("completion") is not None:
        messages = _joined(row["prompt"], row["completion"], place)
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


def _joined(prompt: Any, completion: Any, place: str) -> list[Any]:
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
    # Parquet fills in keys that only other messages have, and a template takes null for a value.
    return {str(name): value for name, value in message.items() if value is not None}


class ChatRow(NamedTuple):
    """A row of ``input_ids`` and ``labels``.

    Attributes:
        columns: The row.
        answers: How many it has labels for.
        merged_turns: How many of them begin inside a token, see `longlens.data.chat.ChatCounts`.
    """

    columns: Columns
    answers: int
    merged_turns: int

    @property
    def size(self) -> int:
        """How many tokens."""
        return size_of(self.columns)

    @property
    def learned(self) -> int:
        """How many tokens with a label."""
        return int((self.columns["labels"] != IGNORED).sum())


class ChatEncoder:
    """A tokenizer and its chat template: conversations to columns.

    Args:
        tokenizer: Of transformers.
        turns: ``together`` for labels of all answers, ``apart`` for those of the last one.

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
            UserError: The template cannot write it, or its turns cannot be told apart.
        """
        try:
            text, spans = self._template.write(
                conversation.messages, conversation.answers(), tools=conversation.tools, turns=self.turns
            )
            token_ids, char_spans = self._encoder.encode(text)
        except UserError as error:
            raise UserError(f"{conversation.place}: {error}") from error
        learned = np.zeros(len(token_ids), dtype=bool)
        merged = 0
        for span in spans:
            inside = _tokens_inside(span, char_spans)
            merged += bool((inside & (char_spans[:, 0] < span.start)).any())
            learned |= self._without_what_follows_the_end(inside, text, token_ids, char_spans)
        ids = token_ids.astype(np.int32)
        answers = len(conversation.answers()) if self.turns == "together" else 1
        return ChatRow({"input_ids": ids, "labels": np.where(learned, ids, np.int32(IGNORED))}, answers, merged)

    def _without_what_follows_the_end(
        self, inside: npt.NDArray[np.bool_], text: str, token_ids: Ints, char_spans: Ints
    ) -> npt.NDArray[np.bool_]:
        """Leaves out white space after the token that ends a turn: generation stops before it."""
        last = places = np.flatnonzero(inside)
        while len(last) and text[slice(*char_spans[last[-1]])].isspace():
            last = last[:-1]
        if not len(last) or int(token_ids[last[-1]]) not in self._added:
            return inside
        trimmed: npt.NDArray[np.bool_] = inside.copy()
        trimmed[places[len(last) :]] = False
        return trimmed


def _tokens_inside(span: Span, char_spans: Ints) -> npt.NDArray[np.bool_]:
    """Tokens that hold a character of the span, or hold none and stand in it."""
    starts, ends = char_spans[:, 0], char_spans[:, 1]
    empty = (starts == ends) & (starts >= span.start)
    inside: npt.NDArray[np.bool_] = (starts < span.end) & ((ends > span.start) | empty)
    return inside
