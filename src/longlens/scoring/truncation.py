"""Documents are truncated once, as text, before scoring, so that two models are compared on the same text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from longlens.corpus import Document
from longlens.errors import LonglensWarning, UserError
from longlens.models import load_encoder
from longlens.scoring.scorer import TokenizedModel
from longlens.settings.options import MAX_LENGTH, Truncation
from longlens.tokenization import Encoded

CHARACTERS_PER_TOKEN = 64
"""A text with more characters than this per token of the limit is not tokenized to its end."""


class TruncatedText(NamedTuple):
    """A text after truncation, and its number of tokens before (None if it was too long to count)."""

    text: str
    total_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class TokenLimit:
    """Truncates a text to at most ``max_tokens`` tokens of a tokenizer, at the end of a character.

    Attributes:
        max_tokens: The limit, without BOS.
        counted_by: Name of the tokenizer, for the manifest; ``"own"`` for the scored model's.
        encode: Text to tokens and spans.
        bos_token_id: BOS, which is not counted if a text begins with it; None if the tokenizer has none.
    """

    max_tokens: int
    counted_by: str
    encode: Callable[[str], Encoded]
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise UserError(f"`max_length` is {self.max_tokens}; expected at least 2")

    def __call__(self, text: str) -> TruncatedText:
        """Returns the longest prefix that ends with one of the first ``max_tokens`` tokens and has at most that many
        tokens.

        A BOS with which the text itself begins is not counted.

        The prefix is tokenized again, since a tokenizer may split the new end differently; as long as it has more
        tokens than allowed, it is truncated again.
        """
        head, counted = text, True
        size = CHARACTERS_PER_TOKEN * self.max_tokens
        while len(text) > size:
            head, counted = text[:size], False
            # Tokens of spaces can have more characters than that; then look further.
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
            # A character that is split across the limit also belongs to later tokens, and is dropped.
            end = int(np.min(encoded.char_spans[most:, 0]))
            end = min(end, int(encoded.char_spans[most - 1, 1]))
            head = head[: end if end < len(head) else len(head) - 1]
            encoded = self.encode(head)
        return TruncatedText(head, total)


@dataclass(frozen=True, kw_only=True)
class CharacterLimit:
    """Truncates a text to ``max_characters`` characters."""

    max_characters: int
    counted_by: str = "characters"

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise UserError(f"`max_characters` is {self.max_characters}; expected at least 1")

    def __call__(self, text: str) -> TruncatedText:
        """``text[:max_characters]``; its tokens before truncation are not counted."""
        return TruncatedText(text[: self.max_characters], None)


Limit = TokenLimit | CharacterLimit


def cut_documents(documents: Iterable[Document], limit: Limit) -> Iterator[Document]:
    """Yields the documents with their texts truncated as in a run with this limit."""
    for document in documents:
        yield replace(document, text=limit(document.text).text)


def num_characters(text: str, limit: Limit) -> int:
    """Approximate number of scored characters of a text, without counting its tokens; for progress displays."""
    return min(len(text), limit.max_characters if isinstance(limit, CharacterLimit) else 5 * limit.max_tokens)


def make_limit(truncation: Truncation, model: TokenizedModel | None, *, trust_remote_code: bool = False) -> Limit:
    """Makes the truncation limit of a run.

    Tokens are counted by the model's tokenizer unless `Truncation.truncate_with` specifies another one. If the model
    has ``max_length`` positions and its tokenizer has a BOS, the limit is one token less, with a warning.

    Args:
        truncation: How documents are truncated.
        model: The scored model, or only its tokenizer and configuration; None if there is none.
        trust_remote_code: Runs code that comes with the model specified by `Truncation.truncate_with`.

    Raises:
        UserError: The limit is invalid, exceeds the model's maximum length without `Truncation.extrapolate`, or counts
            tokens without a model that counts them.
    """
    if truncation.max_characters is not None:
        return CharacterLimit(max_characters=truncation.max_characters)
    if truncation.truncate_with is not None:
        encoder = load_encoder(truncation.truncate_with, trust_remote_code=trust_remote_code)
        return TokenLimit(
            max_tokens=MAX_LENGTH if truncation.max_length is None else truncation.max_length,
            counted_by=truncation.truncate_with,
            encode=encoder.encode,
            bos_token_id=encoder.bos_token_id,
        )
    if model is None:
        raise UserError("`max_length` counts tokens: pass the model whose tokenizer counts them as `truncate_with`")
    return TokenLimit(
        max_tokens=_max_tokens(truncation, model),
        counted_by="own",
        encode=lambda text: model.encode(Document(id="", text=text)),
        bos_token_id=model.info.bos_token_id,
    )


def _max_tokens(truncation: Truncation, model: TokenizedModel) -> int:
    info, wanted = model.info, truncation.max_length
    takes = None if info.max_length is None else info.max_length - (info.bos_token_id is not None)
    if wanted is None:
        return MAX_LENGTH if takes is None else min(MAX_LENGTH, takes)
    if takes is None or wanted <= takes or truncation.extrapolate:
        return wanted
    if wanted != info.max_length:
        raise UserError(
            f"`max_length` is {wanted}; {info.name} supports {takes} tokens"
            + (" and BOS" if info.bos_token_id is not None else "")
            + ". Use a smaller one, or `extrapolate=True` to score beyond the model's maximum length"
        )
    warnings.warn(
        f"{info.name} supports {wanted:,} tokens including BOS: documents are truncated to {takes:,}",
        LonglensWarning,
        stacklevel=3,
    )
    return takes
