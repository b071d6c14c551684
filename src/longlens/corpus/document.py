"""Defines the document and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longlens.errors import UserError, shown_value

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text to score.

    Attributes:
        id: Unique id of the document within a run.
        text: The text, any Unicode except lone surrogates (which cannot be encoded as UTF-8).
        token_ids: Ids of another tokenizer from which the text was decoded, if the input was tokenized; never scored.
        answer_spans: ``[start, end)`` in characters of the parts that answer a question (paper, section 2.1).
        metadata: Other fields of the row.
    """

    id: str
    text: str
    token_ids: Sequence[int] | None = None
    answer_spans: Spans | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def check_answer_spans(value: Any, place: str, characters: int | None = None) -> tuple[tuple[int, int], ...]:
    """Validates untrusted answer spans and returns them as pairs of integers.

    Args:
        value: A sequence of pairs, which may be empty.
        place: Location of the value, for the message.
        characters: Length of the text; None if it is unknown, or if the text may be truncated before an answer.

    Raises:
        UserError: The value is not a sequence of ``[start, end)`` in characters, ``0 <= start <= end``.
    """
    listed = value.tolist() if hasattr(value, "tolist") else value
    for span in listed if isinstance(listed, (list, tuple)) else [listed]:
        pair = isinstance(span, (list, tuple)) and len(span) == 2 and all(type(end) is int for end in span)
        if not pair or not 0 <= span[0] <= span[1] or (characters is not None and span[1] > characters):
            bound = "" if characters is None else f" <= {characters}"
            raise UserError(
                f"answer_spans of {place} has {shown_value(span)}, expected [start, end) in characters with "
                f"0 <= start <= end{bound}, such as [[4, 9]]: fix it"
            )
    return tuple((start, end) for start, end in listed)


def text_sha256(text: str) -> str:
    """``sha256(text.encode("utf-8")).hexdigest()``: identifies the text of scores and keys.

    Raises:
        UserError: The text has a lone surrogate and is thus not valid Unicode.
    """
    try:
        return hashlib.sha256(text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as error:
        raise UserError(
            f"text has a lone surrogate {text[error.start]!r} at character {error.start}, which is not valid Unicode: "
            "replace it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error
