"""Conversations to token ids and labels for supervised fine-tuning: only what the assistant says is learned."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from longlens.corpus import text_sha256
from longlens.data.conversation import ASSISTANT, ChatEncoder, ChatRow, Conversation, Turns, read_conversation
from longlens.data.documents import fingerprint, read_dataset_rows
from longlens.data.packing import BestFit, PackingCounts, pack
from longlens.data.store import Columns, DatasetFolder, read_manifest, schema_of, to_dataset
from longlens.errors import LonglensWarning, UserError, shown
from longlens.settings.options import Reading
from longlens.tokenization import TextEncoder

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSettings:
    """Settings for converting conversations to rows.

    Attributes:
        max_length: Maximum tokens per row.
        too_long: For conversations with more tokens: ``cut`` keeps the whole turns that fit, ``drop`` removes the
            conversation.
        turns: ``together`` makes one row per conversation, ``apart`` one per answer, see `chat_dataset`.

    Raises:
        UserError: A value is out of range.
    """

    max_length: int
    too_long: Literal["cut", "drop"] = "cut"
    turns: Turns = "together"

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.max_length < 2:
            raise UserError(f"`max_length` is {self.max_length}; a row needs at least 2 tokens, such as 4096")
        if self.too_long not in ("cut", "drop"):
            raise UserError(f"`too_long` is {self.too_long!r}; expected cut or drop")
        if self.turns not in ("together", "apart"):
            raise UserError(f"`turns` is {self.turns!r}; expected together or apart")


@dataclass(slots=True)
class ChatCounts:
    """Counts of conversations, rows and tokens.

    With ``turns="together"``, ``conversations == rows + long_conversations + unanswered_conversations``.

    Attributes:
        conversations: Number of conversations that were read.
        rows: Number of rows that were made.
        tokens: Number of tokens in the rows.
        learned_tokens: Number of these tokens with a label.
        cut_conversations: Number of conversations whose last turns were removed so that the rest fits.
        cut_answers: Number of assistant turns that were removed in this way.
        long_conversations: Number of conversations dropped because not even the first answer fits (or, with
            ``too_long="drop"``, not all do).
        unanswered_conversations: Number of conversations dropped because they have no assistant turn to learn.
        merged_turns: Number of turns whose first token also contains characters of the prompt. The token is learned,
            but after the prompt alone a model would have to begin with another token.
    """

    conversations: int = 0
    rows: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    cut_conversations: int = 0
    cut_answers: int = 0
    long_conversations: int = 0
    unanswered_conversations: int = 0
    merged_turns: int = 0

    def to_json(self) -> dict[str, int]:
        """Returns all counts."""
        return asdict(self)


def chat_dataset(
    sources: Sequence[str],
    tokenizer: Any,
    *,
    max_length: int,
    reading: Reading | None = None,
    too_long: Literal["cut", "drop"] = "cut",
    turns: Turns = "together",
    counts: ChatCounts | None = None,
) -> Dataset:
    """Converts conversations to training rows: ``input_ids``, and ``labels`` that are -100 except at the assistant's
    turns.

    A turn is the text that the template writes between the prompt for it and the next turn: the content, and the token
    that ends it. For ``U A U A``, each a turn with its header (``h``) and end (``e``)::

        input_ids   h U e   h A e   h U e   h A e
        labels      - - -   - A e   - - -   - A e

    A row is ``{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}``, or has
    ``prompt`` and ``completion``, as messages or as strings (a user's turn and its answer). A list of functions
    under ``tools``, and further keys of a message, are passed to the template. Messages after the last answer are
    dropped. A first message by the assistant is context, because it has no prompt.

    JSON rows are passed to the template unchanged. Arrow (Parquet, saved datasets) adds to every object all keys that
    occur in any row, with null if they were missing, so nulls inside objects are removed at any depth. Keep rows with
    intended nulls as JSON Lines.

    Args:
        sources: JSON Lines or Parquet files, folders of such files, or ``hf:NAME``.
        tokenizer: A transformers tokenizer, with a chat template.
        max_length: Maximum tokens per row.
        reading: Subset, split (``train`` by default) and number of conversations.
        too_long: For conversations with more tokens: ``cut`` keeps the complete turns that fit, ``drop`` removes the
            conversation.
        turns: ``together`` makes one row per conversation. ``apart`` makes one row per answer, after the conversation
            before it as the template writes it there. Use it for templates that write an answer differently once
            messages follow it, such as those that remove earlier reasoning (Qwen3).
        counts: Updated with the counts of this call.

    Returns:
        Rows in the order of the conversations, none longer than ``max_length`` and each with at least one label.

    Raises:
        UserError: There is no chat template, or one whose turns cannot be separated (see `ChatTemplate`); a row is not
            a conversation; or no row is left.

    Warns:
        LonglensWarning: Conversations were truncated or left out, or answers begin inside a token of the prompt.
    """
    settings = ChatSettings(max_length=max_length, too_long=too_long, turns=turns)
    counts = ChatCounts() if counts is None else counts
    rows = chat_rows(sources, tokenizer, settings, reading=reading, counts=counts)
    dataset = to_dataset(rows, [("input_ids", np.int32), ("labels", np.int32)])
    _warn_left_out(counts, max_length)
    return dataset


def chat_folder(
    sources: Sequence[str],
    tokenizer: Any,
    out: str | os.PathLike[str],
    settings: ChatSettings,
    *,
    pack_rows: bool = False,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Writes the rows of `chat_dataset` into a folder, atomically.

    Args:
        sources: JSON Lines or Parquet files, folders of such, or ``hf:NAME``.
        tokenizer: A transformers tokenizer, with a chat template.
        out: A new folder.
        settings: How conversations become rows.
        pack_rows: Whether to pack whole conversations into rows, without attention between them.
        reading: Subset, split (``train`` by default) and number of conversations.

    Returns:
        Content of counts.json: `ChatCounts`, and ``packed_rows`` if rows are packed.

    Raises:
        UserError: As for `chat_dataset`; the folder contains something else; or the disk is full.

    Warns:
        LonglensWarning: Conversations were truncated or left out, or answers begin inside a token of the prompt.
    """
    reading = Reading(split="train") if reading is None else reading
    manifest = {
        "sources": {source: fingerprint(source) for source in sources},
        "tokenizer_sha256": TextEncoder(tokenizer).sha256,
        "chat_template_sha256": text_sha256(str(tokenizer.chat_template)),
        "length": settings.max_length,
        "pack": pack_rows,
        "too_long": settings.too_long,
        "turns": settings.turns,
        "subset": reading.subset,
        "split": reading.split,
        "samples": reading.samples,
    }
    counts, packed = ChatCounts(), PackingCounts()
    with DatasetFolder(Path(out), "chat", manifest) as folder:
        if folder.counts is not None:
            return folder.counts
        rows: Iterator[Mapping[str, Any]] = chat_rows(sources, tokenizer, settings, reading=reading, counts=counts)
        # Packing one conversation per row would be the same, except for positions, which padding does not need.
        if pack_rows:
            rows = pack(rows, settings.max_length, packing=BestFit(), counts=packed)
        folder.write("data", rows, schema_of(["input_ids", "labels"]))
        _warn_left_out(counts, settings.max_length)
        found = counts.to_json() | ({"packed_rows": packed.rows} if pack_rows else {})
        folder.finish(found)
        return found


def chat_rows(
    sources: Sequence[str],
    tokenizer: Any,
    settings: ChatSettings,
    *,
    reading: Reading | None = None,
    counts: ChatCounts | None = None,
) -> Iterator[Columns]:
    """The rows of `chat_dataset`, one by one; arguments are checked immediately.

    Args:
        sources: JSON Lines or Parquet files, folders of such, or ``hf:NAME``.
        tokenizer: A transformers tokenizer, with a chat template.
        settings: How conversations become rows.
        reading: Subset, split (``train`` by default) and number of conversations.
        counts: Updated as rows are made.

    Raises:
        UserError: See `chat_dataset`; also if no row was made after the last conversation was read.
    """
    if isinstance(sources, (str, bytes, Path)):
        raise UserError(f"`sources` is {shown(sources)}, expected a list of them: pass [{shown(sources)}]")
    if not sources:
        raise UserError("no conversations: pass JSON Lines or Parquet files, folders or hf:NAME")
    for source in sources:
        if not source.startswith("hf:"):
            read_manifest(Path(source))  # rejects an unfinished folder of `longlens data qa`
    reading = Reading(split="train") if reading is None else reading
    encoder = ChatEncoder(tokenizer, turns=settings.turns)
    counts = ChatCounts() if counts is None else counts
    found = islice(read_dataset_rows(sources, reading), reading.samples)
    conversations = (read_conversation(row.values, row.place) for row in found)
    return _count_rows(conversations, encoder, settings, counts)


def _count_rows(
    conversations: Iterable[Conversation], encoder: ChatEncoder, settings: ChatSettings, counts: ChatCounts
) -> Iterator[Columns]:
    for conversation in conversations:
        counts.conversations += 1
        answers = conversation.find_answers()
        rows = _fitting_rows(conversation, encoder, settings)
        left_out = len(answers) - sum(row.answers for row in rows)
        rows = [row for row in rows if row.learned]
        if answers and left_out == len(answers):
            counts.long_conversations += 1
        elif not rows:
            counts.unanswered_conversations += 1
        elif left_out:
            counts.cut_conversations += 1
            counts.cut_answers += left_out
        for row in rows:
            counts.rows += 1
            counts.tokens += row.size
            counts.learned_tokens += row.learned
            counts.merged_turns += row.merged_turns
            yield row.columns
    if not counts.rows:
        raise UserError(
            f"no row was made of {counts.conversations:,} conversations: {counts.long_conversations:,} are longer than "
            f"{settings.max_length:,} tokens, {counts.unanswered_conversations:,} have no turn of the role "
            f"{ASSISTANT!r} after another: raise `max_length`, or check the roles"
        )


def _fitting_rows(conversation: Conversation, encoder: ChatEncoder, settings: ChatSettings) -> list[ChatRow]:
    """Rows of a conversation, as far as they fit; none if nothing fits or there is no answer."""
    answers = conversation.find_answers()
    if settings.turns == "apart":
        rows = [encoder.encode(conversation.until(answer)) for answer in answers]
        fitting = [row for row in rows if row.size <= settings.max_length]
        return [] if settings.too_long == "drop" and len(fitting) < len(rows) else fitting
    for answer in reversed(answers):
        row = encoder.encode(conversation.until(answer))
        if row.size <= settings.max_length:
            return [row]
        if settings.too_long == "drop":
            break
    return []


def _warn_left_out(counts: ChatCounts, max_length: int) -> None:
    """Warns about what was truncated, dropped or merged, if anything was.

    Args:
        counts: Counts of all rows.
        max_length: Maximum tokens per row.
    """
    happened = [
        (counts.cut_conversations, f"truncated to {max_length:,} tokens ({counts.cut_answers:,} answers)"),
        (counts.long_conversations, f"left out because they are longer than {max_length:,} tokens"),
        (counts.unanswered_conversations, "left out because they have nothing to learn"),
    ]
    parts = [f"{number:,} were {what}" for number, what in happened if number]
    if parts:
        warnings.warn(f"of {counts.conversations:,} conversations {', '.join(parts)}", LonglensWarning, stacklevel=3)
    if counts.merged_turns:
        warnings.warn(
            f"{counts.merged_turns:,} answers begin inside a token that begins in the prompt, so the prompt alone is "
            "tokenized differently: strip whitespace from the answers, or set a tokenizer.chat_template whose prompt "
            "ends with a special token",
            LonglensWarning,
            stacklevel=3,
        )
