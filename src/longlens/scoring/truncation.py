"""Documents are cut once, as text, before any model sees them, so that two models are compared on the same text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longlens.errors import UserError
from longlens.tokenization import Encoded

CHARACTERS_PER_TOKEN = 64
"""A text longer than this many characters for each token of the limit is not tokenized to its end."""


class Cut(NamedTuple):
    """A text after truncation, and how many tokens it had before (None where it was too long to count)."""

    text: str
    total_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class TokenLimit:
    """Cuts a text to at most ``max_tokens`` tokens of a tokenizer, at the end of a character.

    Attributes:
        max_tokens: The limit, without BOS.
        counted_by: Name of the tokenizer, for the manifest; ``"own"`` for the scored model's.
        encode: Text to tokens and spans.
        bos_token_id: Is not counted where a text begins with it; None where the tokenizer has none.
    """

    max_tokens: int
    counted_by: str
    encode: Callable[[str], Encoded]
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise UserError(f"--max-length is {self.max_tokens}; a document needs at least 2 tokens")

    def __call__(self, text: str) -> Cut:
        """The longest prefix that ends with one of the first ``max_tokens`` tokens and has no more than that many.

        A BOS that the text itself begins with is one more.

        The prefix is tokenized again, since a tokenizer may treat the new end otherwise; while that gives more
        tokens than allowed, it is cut again.
        """
        head, counted = text, True
        size = CHARACTERS_PER_TOKEN * self.max_tokens
        while len(text) > size:
            head, counted = text[:size], False
            # Spaces can make tokens of more characters than that; then look further.
            if len(self.encode(head).token_ids) > self.max_tokens + 1:
                break
            size *= 2
            head, counted = text, True
        encoded = self.encode(head)
        total = len(encoded.token_ids) if counted else None
        most = self.max_tokens + (
            self.bos_token_id is not None and encoded.token_ids[:1].tolist() == [self.bos_token_id]
        )
        while len(encoded.token_ids) > most:
            # A character that is split over the limit belongs to later tokens too, and is left out.
            end = int(np.min(encoded.char_spans[most:, 0]))
            end = min(end, int(encoded.char_spans[most - 1, 1]))
            head = head[: end if end < len(head) else len(head) - 1]
            encoded = self.encode(head)
        return Cut(head, total)


@dataclass(frozen=True, kw_only=True)
class CharacterLimit:
    """Cuts a text to ``max_characters`` characters."""

    max_characters: int
    counted_by: str = "characters"

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise UserError(f"--max-characters is {self.max_characters}; expected at least 1")

    def __call__(self, text: str) -> Cut:
        """``text[:max_characters]``; its tokens before are not counted."""
        return Cut(text[: self.max_characters], None)


Limit = TokenLimit | CharacterLimit
