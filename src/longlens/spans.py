"""Which characters of a text each token spells, for tokenizers that do not report offsets. Does not import torch.

A span is ``[start, end)`` in characters (code points). A token that spells a part of a character spans all of it: a
token's span runs from the character of its first byte to the end of the character of its last byte. Spans can
therefore overlap; their starts never decrease.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ints = npt.NDArray[np.int64]
Spell = Callable[[int], "bytes | None"]

_METASPACE = "▁"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_INNER_NAMES = ("sp_model", "tokenizer", "encoder", "instruct_tokenizer", "sp_tokenizer", "sp", "_model")


def spans_from_bytes(utf8: bytes, starts: Ints, ends: Ints) -> Ints:
    """Character spans ``(n, 2)`` of the byte ranges ``[starts[i], ends[i])`` of a text.

    An empty range gives an empty span, at the character that its byte belongs to.

    Args:
        utf8: The text, encoded.
        starts: ``(n,)``, bytes.
        ends: ``(n,)``, bytes, each at least its start.
    """
    data = np.frombuffer(utf8, dtype=np.uint8)
    begun = np.zeros(len(data) + 2, dtype=np.int64)  # begun[b] - 1 = the character of byte b - 1
    np.cumsum((data & 0xC0) != 0x80, out=begun[1:-1])
    begun[-1] = begun[-2] + 1  # a byte after the text belongs to a character after it
    first = begun[starts + 1] - 1
    last = np.where(ends > starts, begun[ends], first)
    return np.stack([first, last], axis=1)


def spans_of(tokenizer: Any, text: str, token_ids: Ints) -> Ints:
    """Spans ``(n, 2)`` for a tokenizer without offsets, from what its tokens spell.

    SentencePiece models report spans. For other tokenizers, the bytes of all tokens, joined, must equal the text (or
    its NFC or NFKC form): tokens as bytes or plain text, in the byte alphabet of GPT-2, one Latin-1 character per byte
    (ByT5), with ``▁`` for a space, or by an inner tiktoken encoding. The first interpretation that spells the text is
    used.

    Raises:
        UserError: No interpretation spells the text.
    """
    spans = _by_sentencepiece(tokenizer, text, token_ids)
    if spans is None:
        spans = _by_spelling(tokenizer, text, token_ids)
    if spans is None:
        spans = _by_spelling_without_stripped(tokenizer, text, token_ids)
    if spans is None:
        raise UserError(
            f"{type(tokenizer).__name__} reports no character offsets, and its tokens do not reproduce the text, so "
            "exact spans are not possible: use a fast tokenizer of this model (one that has a tokenizer.json)"
        )
    return spans


def inner(tokenizer: Any, method: str) -> Any:
    """The object with this method that a tokenizer wraps (a SentencePiece model, a tiktoken encoding), or None."""
    level = [tokenizer]
    for _ in range(4):
        level = [found for outer in level for name in _INNER_NAMES if (found := getattr(outer, name, None)) is not None]
        for found in level:
            if hasattr(found, method):
                return found
    return None


# Tokens that spell the text


def _by_spelling(tokenizer: Any, text: str, token_ids: Ints) -> Ints | None:
    unique, inverse = np.unique(token_ids, return_inverse=True)
    utf8 = text.encode()
    marked = text.replace(" ", _METASPACE).encode()
    for spell, target in _readings(tokenizer, utf8, marked):
        pieces = [spell(index) for index in unique.tolist()]
        known = [piece for piece in pieces if piece is not None]
        if len(known) < len(pieces):
            continue
        spelled = b"".join([known[place] for place in inverse.tolist()])
        lengths = np.array([len(piece) for piece in known], dtype=np.int64)[inverse]
        ends = np.cumsum(lengths)
        if spelled == target:
            return spans_from_bytes(target, ends - lengths, ends)
        if target is marked and spelled == _METASPACE.encode() + target:
            prefix = len(_METASPACE.encode())
            spans = spans_from_bytes(target, np.maximum(ends - lengths - prefix, 0), ends - prefix)
            return _own_character(spans, len(text))
        if target is utf8:
            spans_of_spelled = _through_normal_form(text, spelled, ends - lengths, ends)
            if spans_of_spelled is not None:
                return spans_of_spelled
    return None


def _by_spelling_without_stripped(tokenizer: Any, text: str, token_ids: Ints) -> Ints | None:
    """Like `_by_spelling`, if added tokens absorb adjacent spaces, which no token then spells."""
    kept: list[str] = []
    begins: list[int] = []  # positions in the text of the characters kept
    ends = [0]  # end of the character before
    for start, end, added in _segments(tokenizer, text):
        part = text[start:end] if added is None else text[start:end].strip()
        if part:
            kept.append(part)
            places = range(start, start + len(part))
            begins.extend(places)
            ends.extend([*(place + 1 for place in places[:-1]), end])
    spans = None if sum(map(len, kept)) == len(text) else _by_spelling(tokenizer, "".join(kept), token_ids)
    if spans is None:
        return None
    return np.stack([np.array([*begins, len(text)])[spans[:, 0]], np.array(ends)[spans[:, 1]]], axis=1)


def _readings(tokenizer: Any, utf8: bytes, marked: bytes) -> Iterator[tuple[Spell, bytes]]:
    """The ways to read a token as bytes, each with the text that the tokens must then spell."""
    added = _added_tokens(tokenizer)

    def read(decode: Callable[[str], bytes | None]) -> Spell:
        def spell(index: int) -> bytes | None:
            token = added.get(index) or tokenizer.convert_ids_to_tokens([index])[0]
            if isinstance(token, bytes):
                return token
            return None if token is None else token.encode() if index in added else decode(token)

        return spell

    yield read(str.encode), utf8
    yield read(_from_gpt2), utf8
    yield read(_from_latin1), utf8
    yield read(_from_metaspace), marked
    for method in ("decode_single_token_bytes", "id_to_byte_piece"):  # tiktoken.Encoding; Tekkenizer of mistral-common
        found = inner(tokenizer, method)
        if found is not None:
            yield _by_id(getattr(found, method)), utf8


def _by_id(decode: Callable[[int], bytes]) -> Spell:
    def spell(index: int) -> bytes | None:
        try:
            return decode(index)
        except (KeyError, IndexError, ValueError):
            return None

    return spell


def _added_tokens(tokenizer: Any) -> dict[int, str]:
    try:
        return {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    except (AttributeError, NotImplementedError):
        return {}


@lru_cache
def _gpt2_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 is itself, the other bytes are U+0100 and above (encoder.py of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _from_gpt2(token: str) -> bytes | None:
    alphabet = _gpt2_alphabet()
    return bytes([alphabet[c] for c in token]) if all(c in alphabet for c in token) else None


def _from_latin1(token: str) -> bytes | None:
    try:
        return token.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _from_metaspace(token: str) -> bytes:
    piece = _BYTE_PIECE.fullmatch(token)
    return bytes([int(piece[1], 16)]) if piece else token.encode()


def _through_normal_form(text: str, spelled: bytes, starts: Ints, ends: Ints) -> Ints | None:
    """Spans of byte ranges of ``spelled``, if that is the text in a Unicode normal form."""
    for form in ("NFC", "NFKC"):
        if unicodedata.normalize(form, text).encode() == spelled:
            encoding = _byte_tokenizer(form).encode(text)
            of_bytes = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            if len(of_bytes) != len(spelled):  # a Unicode version other than Python's
                return None
            return np.stack([of_bytes[starts, 0], of_bytes[ends - 1, 1]], axis=1)
    return None


@lru_cache
def _byte_tokenizer(form: str) -> Tokenizer:
    """A tokenizer with one token per byte of the normalized text, whose offsets refer to the original text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    alphabet = {character: byte for byte, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.normalizer = {"NFC": normalizers.NFC, "NFKC": normalizers.NFKC}[form]()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


# SentencePiece


def _by_sentencepiece(tokenizer: Any, text: str, token_ids: Ints) -> Ints | None:
    """Spans from the SentencePiece model inside; None if there is none, or if its ids differ from the tokenizer's."""
    model = inner(tokenizer, "serialized_model_proto")
    if model is None:
        return None
    ids: list[int] = []
    parts: list[Ints] = []
    for start, end, added in _segments(tokenizer, text):
        if added is not None:
            ids.append(added)
            parts.append(np.array([[start, end]]))
        elif end > start:
            piece_ids, spans = _pieces(tokenizer, model, text[start:end])
            ids.extend(piece_ids)
            parts.append(spans + start)
    if not np.array_equal(ids, token_ids):
        return None
    return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)


def _segments(tokenizer: Any, text: str) -> Iterator[tuple[int, int, int | None]]:
    """``(start, end, id of the added token)`` of the parts into which a slow tokenizer splits the text."""
    trie = getattr(tokenizer, "tokens_trie", None)
    if trie is None or tokenizer.split_special_tokens:
        yield 0, len(text), None
        return
    ids = dict(tokenizer.added_tokens_encoder)
    ids.update({token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens})
    settings = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    cut = [part for part in trie.split(text) if part]
    ends = np.cumsum([len(part) for part in cut]).tolist()
    bounds = [[end - len(part), end] for part, end in zip(cut, ends, strict=True)]
    for place, part in enumerate(cut):
        if getattr(settings.get(part), "rstrip", False) and place + 1 < len(cut):
            after = cut[place + 1]
            bounds[place][1] = bounds[place + 1][0] = bounds[place + 1][1] - len(after.lstrip())
        if getattr(settings.get(part), "lstrip", False) and place > 0:
            left = text[slice(*bounds[place - 1])].rstrip()
            bounds[place][0] = bounds[place - 1][1] = bounds[place - 1][0] + len(left)
    for part, (start, end) in zip(cut, bounds, strict=True):
        yield start, end, ids.get(part)


def _pieces(tokenizer: Any, model: Any, text: str) -> tuple[list[int], Ints]:
    """Ids and spans that the SentencePiece model returns for a text without added tokens."""
    from sentencepiece import sentencepiece_pb2

    # Without the dummy prefix, SentencePiece drops leading spaces: transformers then encodes "<unk>" before the text
    # and removes its pieces.
    unknown = (
        "" if getattr(tokenizer, "legacy", True) or not text.startswith((_METASPACE, " ")) else tokenizer.unk_token
    )
    proto = sentencepiece_pb2.SentencePieceText.FromString(model.encode(unknown + text, out_type="serialized_proto"))
    pieces: Sequence[Any] = proto.pieces[len(model.encode(unknown)) if unknown else 0 :]
    ids = [piece.id for piece in pieces]
    places = np.array([(piece.begin, piece.end) for piece in pieces], dtype=np.int64).reshape(-1, 2)
    places = np.maximum(places - len(unknown.encode()), 0)
    spans = spans_from_bytes(text.encode(), places[:, 0], places[:, 1])
    # Of several pieces for one character (bytes, or what it is normalized to), only the last one has a position.
    is_byte = np.array([model.is_byte(index) for index in ids], dtype=bool)
    full = np.where(spans[:, 1] > spans[:, 0], np.arange(len(spans)), len(spans))
    following = np.minimum.accumulate(full[::-1])[::-1]
    takes = is_byte & (following < len(spans))
    spans[takes, 1] = spans[following[takes], 1]
    return ids, _own_character(spans, len(text))


def _own_character(spans: Ints, length: int) -> Ints:
    """Assigns a piece that spells nothing (a dummy prefix) to the character after it, as `tokenizers` does."""
    empty = spans[:, 0] == spans[:, 1]
    spans[empty, 1] = np.minimum(spans[empty, 0] + 1, length)
    return spans
