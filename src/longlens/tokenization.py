"""Text to token ids and exact character spans, with any Hugging Face tokenizer. Imports no heavy package."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError, library_errors
from longlens.spans import inner, spans_of

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Ints = npt.NDArray[np.int64]


class Encoded(NamedTuple):
    """The n tokens of a text, without special tokens around it.

    Attributes:
        token_ids: ``(n,)`` int64.
        char_spans: ``(n, 2)`` int64, ``[start, end)`` in Python characters (code points) of the text.
    """

    token_ids: Ints
    char_spans: Ints


class TextEncoder:
    """A transformers tokenizer as text -> ids and spans; ids are ``tokenizer(text, add_special_tokens=False)``.

    A span runs from the character of the token's first byte to the end of the character of its last byte, so tokens
    that share a character overlap. Starts never decrease, and leading spaces belong to the token that spells them, also
    where the tokenizer's own offsets leave them out (``trim_offsets``, as in GPT-2 and RoBERTa). Characters that the
    tokenizer drops (an ignored space or control character) are in no span. A dummy prefix that is a separate token
    (``▁`` of Llama-2) spans the character after it.

    The tokenizer itself is not changed; later changes to its vocabulary have no effect here.

    Attributes:
        bos_token_id: Token that precedes every window by default; None if the tokenizer has none.
        own_prefix: Special tokens that ``tokenizer(text)`` puts before a text.
    """

    bos_token_id: int | None
    own_prefix: tuple[int, ...]

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, spans: Literal["exact", "tokenizer"] = "exact") -> None:
        """Prepares a tokenizer.

        Args:
            tokenizer: Any transformers tokenizer: fast, SentencePiece, tiktoken-type or Python.
            spans: ``"tokenizer"`` uses its own ``offset_mapping`` unchanged, for parity with the published package.

        Raises:
            UserError: ``spans="tokenizer"``, but the tokenizer has no offsets of its own.
        """
        self._tokenizer: Any = tokenizer
        self._name = type(tokenizer).__name__
        self._exact = spans == "exact"
        self._fast = _Fast(tokenizer) if getattr(tokenizer, "is_fast", False) else None
        if self._fast is None and not self._exact:
            raise UserError(
                f"{self._name} is not a fast tokenizer and has no offsets of its own: use spans='exact', the default"
            )
        self.bos_token_id = getattr(tokenizer, "bos_token_id", None)
        with self._errors():
            self.own_prefix = self._find_own_prefix()
        if self._fast is not None and self._exact:
            self._fast.untrim()

    def encode(self, text: str) -> Encoded:
        """Token ids and spans of a text.

        Raises:
            UserError: The text has a lone surrogate, the tokenizer reports no offsets and its tokens do not spell the
                text, or its offsets are out of order.
        """
        _require_unicode(text)
        with self._errors():
            if self._fast is None:
                token_ids = self._own_ids(text)
                char_spans = spans_of(self._tokenizer, text, token_ids)
            else:
                encoding = self._fast.encode(text)
                token_ids = np.array(encoding.ids, dtype=np.int64)
                char_spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
                if self._fast.may_differ and not np.array_equal(token_ids, self._own_ids(text)):
                    raise UserError(
                        f"{self._name} changes the ids of its backend tokenizer, so that their characters are not "
                        "known: load the model's tokenizer.json with "
                        "transformers.PreTrainedTokenizerFast(tokenizer_file=...)"
                    )
        if self._exact:
            check_spans(char_spans, len(text), name=self._name)
            char_spans = extend_over_marks(text, char_spans)
        return Encoded(token_ids, char_spans)

    @cached_property
    def sha256(self) -> str:
        """Hash that identifies the tokenizer's behavior: vocabulary, merges, normalizer, added tokens, as its library
        writes them.

        The same tokenizer loaded as another class, or written by another version of `tokenizers`, can have another
        hash.
        """
        digest = hashlib.sha256(_description(self._tokenizer) if self._fast is None else self._fast.json())
        # Neither setting is in the backend's file. With the usual values the hash is that of the file.
        if getattr(self._tokenizer, "split_special_tokens", False):
            digest.update(b"split_special_tokens")
        if not self._exact:
            digest.update(b"spans='tokenizer'")
        return digest.hexdigest()

    def _errors(self) -> AbstractContextManager[None]:
        # Tokenizer files are untrusted, and the Rust code panics on some of them.
        return library_errors(f"{self._name} cannot tokenize a text", "use another tokenizer of this model")

    def _own_ids(self, text: str) -> Ints:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array(ids, dtype=np.int64)

    def _find_own_prefix(self) -> tuple[int, ...]:
        if self._fast is not None and not self._fast.may_differ:  # calling the tokenizer resets its own truncation
            whole = self._fast.encode("text", special=True).ids
            bare = self._fast.encode("text").ids
        else:
            whole = list(self._tokenizer("text", verbose=False)["input_ids"])
            bare = self._own_ids("text").tolist()
        starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
        return tuple(whole[: starts[0]]) if starts and bare else ()


def extend_over_marks(text: str, spans: Ints) -> Ints:
    """Adds marks that are in no span to the token that ends before them: NFC composes ``e`` and its accent.

    The `tokenizers` library assigns only the first of the two characters to such a token.

    Args:
        text: The text.
        spans: ``(n, 2)``, sorted by start.
    """
    change = np.bincount(spans[:, 0], minlength=len(text) + 1) - np.bincount(spans[:, 1], minlength=len(text) + 1)
    bare = np.flatnonzero(np.cumsum(change)[:-1] == 0)
    if len(bare) == 0:
        return spans
    end_at = np.arange(len(text) + 1, dtype=np.int64)
    previous, begin = -2, 0
    for place in bare.tolist():
        if place != previous + 1:
            begin = place
        if not _continues(text[place]):
            continue  # previous is not advanced, so marks after this token do not join the one before it
        end_at[begin] = place + 1
        previous = place
    extended: Ints = spans.copy()
    spelled = spans[:, 1] > spans[:, 0]
    extended[spelled, 1] = end_at[spans[spelled, 1]]
    return extended


def check_spans(spans: Ints, length: int, *, name: str) -> None:
    """Checks ``0 <= start <= end <= length`` and that starts do not decrease.

    Raises:
        UserError: The spans violate this; the message contains the tokenizer's name.
    """
    inside = np.all((spans[:, 0] >= 0) & (spans[:, 0] <= spans[:, 1]) & (spans[:, 1] <= length))
    if not inside or np.any(np.diff(spans[:, 0]) < 0):
        raise UserError(
            f"{name} reports character spans that are out of order or outside the text of {length} characters, so they "
            "cannot be relied on: use another tokenizer of this model, or spans='tokenizer' to use them unchanged"
        )


def _continues(character: str) -> bool:
    """Whether a character belongs to the one before it: a mark, or a vowel or final consonant of a Hangul syllable."""
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


class _Fast:
    """A copy of a fast tokenizer's backend, without truncation and padding.

    Attributes:
        may_differ: Whether the tokenizer's class adds its own encoding step around the backend, so that ids have to be
            compared.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        kind = type(tokenizer)
        self.may_differ = (
            kind._encode_plus is not PreTrainedTokenizerFast._encode_plus
            or kind.__call__ is not PreTrainedTokenizerBase.__call__
        )
        self._tokenizer = tokenizer
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._post_processor = self._backend.post_processor

    def untrim(self) -> None:
        """Removes the post-processor: without special tokens, it only trims spaces from the offsets."""
        self._backend.post_processor = None

    def encode(self, text: str, *, special: bool = False) -> Encoding:
        self._backend.encode_special_tokens = bool(self._tokenizer.split_special_tokens)
        return self._backend.encode(text, add_special_tokens=special)

    def json(self) -> bytes:
        """The backend as its library writes it, with the tokenizer's own post-processor."""
        current, self._backend.post_processor = self._backend.post_processor, self._post_processor
        try:
            return self._backend.to_str().encode()
        finally:
            self._backend.post_processor = current


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer; ids can have gaps."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def decoder_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """``tokenizer.decode`` for `longlens.read_documents`, which rejects ids that the tokenizer does not have.

    The tokenizer itself would silently omit them.
    """
    size = vocabulary_size(tokenizer)

    def decode(token_ids: Sequence[int]) -> str:
        wrong = max(token_ids, default=-1)
        if wrong >= size:
            raise UserError(
                f"input_ids has {wrong}, and the tokenizer has the ids 0 to {size - 1}: pass the tokenizer that made "
                "the rows with `tokenized_with`"
            )
        text: str = tokenizer.decode(token_ids)
        return text

    return decode


def _description(tokenizer: Any) -> bytes:
    """What identifies a tokenizer without a backend: class, vocabulary, added tokens and the model it wraps."""
    vocabulary = {
        token.hex() if isinstance(token, bytes) else str(token): i for token, i in tokenizer.get_vocab().items()
    }
    model = inner(tokenizer, "serialized_model_proto")
    encoding = inner(tokenizer, "decode_single_token_bytes")
    described = {
        "class": type(tokenizer).__name__,
        "vocabulary": vocabulary,
        "sentencepiece": None if model is None else hashlib.sha256(model.serialized_model_proto()).hexdigest(),
        "tiktoken": None if encoding is None else getattr(encoding, "_pat_str", None),
    }
    return json.dumps(described, sort_keys=True).encode()


def _require_unicode(text: str) -> None:
    """Raises the same error as `longlens.corpus.text_sha256` for a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        from longlens.corpus import text_sha256

        text_sha256(text)


def own_bos(tokenizer: Any) -> str:
    """The BOS that the tokenizer itself puts before a text; empty if there is none."""
    ids: list[int] = tokenizer("a", verbose=False)["input_ids"]
    bos = getattr(tokenizer, "bos_token_id", None)
    return str(tokenizer.bos_token) if bos is not None and ids[:1] == [bos] else ""
