"""The document and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longlens.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text to score.

    Attributes:
        id: Names the document in a run; unique there.
        text: The text, any Unicode but lone surrogates (which no UTF-8 file can hold).
        token_ids: The ids of another tokenizer that the text was decoded from, where it came tokenized; never scored.
        answer_spans: ``[start, end)`` in characters of the parts that answer a question (paper, section 2.1).
        metadata: Whatever else came with it.
    """

    id: str
    text: str
    token_ids: Sequence[int] | None = None
    answer_spans: Sequence[tuple[int, int]] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def text_sha256(text: str) -> str:
    """``sha256(text.encode("utf-8")).hexdigest()``: what says that two scores, or keys and scores, are of one text.

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
