"""The document, its hash, and the checks that make every text valid Unicode."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
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


def shown(name: str | bytes | os.PathLike[str]) -> str:
    """A name for a message: quoted, one line, control characters and invalid Unicode escaped, cut if very long."""
    text = os.fsdecode(name)
    return repr(text if len(text) <= 300 else f"{text[:200]}…{text[-50:]}")


def one_line(error: BaseException) -> str:
    """What another library says, for the middle of a message: one line, at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:300]).rstrip(".:")


def check_unicode(text: str, what: str, remedy: str) -> None:
    """Raises UserError if `what` has a lone surrogate, which no file and no hash can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not valid Unicode (lone surrogate {text[error.start]!r} at character {error.start}): {remedy}"
        ) from error


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turns what the system says about a file into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read {shown(path)}: {error.strerror or one_line(error)}: check the file and its permissions"
        ) from error


def utf8(data: bytes, place: str, offset: int = 0) -> str:
    """Decodes strictly; `data` begins at `offset` bytes of its file, at 0 perhaps with a byte order mark."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} is binary: byte 0x{data[error.start]:02x} at offset {offset + error.start} is not valid UTF-8: "
            "convert it, for example with iconv -f ENCODING -t UTF-8, or leave it out"
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text
