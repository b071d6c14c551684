"""Key tokens as files: our JSON Lines format, and the ``slice_N.txt`` files of the published package ``longppl``.

One line of ours is one document::

    {"schema_version": 1, "id": "a", "text_sha256": "…", "evaluator": "NAME", "evaluator_sha256": "…",
     "alpha": 2.0, "beta": -2.0, "lcl": true, "context": 4096, "stride": 1024, "bos": "window", "dtype": "float32",
     "num_key_tokens": 2, "char_runs": [[7, 12]]}

The settings from ``evaluator`` to ``dtype`` are the same on every line, and null where they were not recorded.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.corpus import Document, text_sha256
from longlens.errors import UserError, shown, shown_value
from longlens.files import replacing
from longlens.keytokens.alignment import as_spans, merge_spans
from longlens.keytokens.selection import KeySource, KeyTokens, warn_near_threshold
from longlens.runs.jsonl import read_lines
from longlens.scoring.scores import SequenceById

SCHEMA_VERSION = 1
SETTINGS: Mapping[str, tuple[type, ...]] = {
    "evaluator": (str,),
    "evaluator_sha256": (str,),
    "alpha": (int, float),
    "beta": (int, float),
    "lcl": (bool,),
    "context": (int,),
    "stride": (int,),
    "bos": (str,),
    "dtype": (str,),
}
OPTIONAL = ("evaluator_sha256",)
"""Fields that may be missing in files of longlens 0.1 and of other tools."""
# 18 digits fit an int64, and no number in a file can make int() slow
PUBLISHED_RUN = re.compile(r"\[(\d{1,18}), (\d{1,18})\]", re.ASCII)


class Keys(SequenceById[KeyTokens]):
    """Key tokens of documents that were read from files, in the order of the file."""

    def __init__(self, documents: Iterable[KeyTokens], settings: Mapping[str, Any]) -> None:
        self._by_id = {document.id: document for document in documents}
        self.ids, self.settings = list(self._by_id), settings

    def get(self, id: str) -> KeyTokens:
        """The key tokens of the document with this id.

        Raises:
            KeyError: There is no such document.
        """
        return self._by_id[id]


def write_keys(path: str | os.PathLike[str], keys: KeySource, *, overwrite: bool = False) -> None:
    """Writes key tokens as JSON Lines, atomically.

    Args:
        path: File to write.
        keys: From `select_key_tokens`, or read from other files.
        overwrite: Whether an existing file may be replaced.

    Raises:
        UserError: The file exists, its folder does not, or there are no documents.

    Warns:
        LonglensWarning: Tokens are closer to a threshold than the error of the dtype.
    """
    path = Path(path)
    check_keys_file(path, overwrite=overwrite)
    if not len(keys):
        raise UserError(f"no documents, so there are no key tokens to write to {path}: score documents first")
    shared = {name: keys.settings[name] for name in SETTINGS}
    near = total = 0
    with replacing(path) as file:
        for document in keys:
            line = {
                "schema_version": SCHEMA_VERSION,
                "id": document.id,
                "text_sha256": document.text_sha256,
                **shared,
                "num_key_tokens": document.num_key_tokens,
                "char_runs": document.char_runs.tolist(),
            }
            file.write(json.dumps(line, allow_nan=False) + "\n")
            near += document.num_near_threshold or 0
            total += document.num_key_tokens or 0
    warn_near_threshold(near, total, keys.settings["dtype"])


def check_keys_file(path: Path, *, overwrite: bool = False) -> None:
    """Rejects, before anything is computed, a path to which key tokens cannot be written.

    Raises:
        UserError: It exists, or its folder does not.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another file, or pass `overwrite=True`")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder: create it, then write {path.name} there")


def read_keys(path: str | os.PathLike[str]) -> Keys:
    """Reads key tokens from a file in the format of `write_keys`; additional fields are ignored.

    Raises:
        UserError: The file does not exist, or has a line that is not in the format; the message contains the line
            number.
    """
    path = Path(path)
    documents: dict[str, KeyTokens] = {}
    settings: dict[str, Any] | None = None
    if not path.exists():
        raise UserError(f"{path} does not exist: write it with longlens keys SCORES -o {path}")
    for line in read_lines(path, step="expected a file that longlens keys wrote"):
        fields = line.fields("an object with the key tokens of a document")
        try:
            _check_fields(fields)
            document, here = _document(fields), _settings(fields)
            if document.id in documents:
                raise ValueError(f"id {shown(document.id)} occurs twice in this file")
            for name, value in here.items():
                if settings is not None and settings[name] != value:
                    raise ValueError(
                        f"{name} is {shown_value(value)} and {shown_value(settings[name])} before: "
                        "a key file contains one selection"
                    )
        except ValueError as error:
            raise UserError(f"{line.place}: {error}") from error
        documents[document.id], settings = document, here
    if settings is None:
        raise UserError(f"{path} is empty: write it with longlens keys SCORES -o {path}")
    return Keys(documents.values(), settings)


def _check_fields(line: Mapping[str, Any]) -> None:
    version = line.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {shown_value(version)}, expected {SCHEMA_VERSION}")
    for name in ("id", "text_sha256", *SETTINGS, "num_key_tokens", "char_runs"):
        if name not in line and name not in OPTIONAL:
            raise ValueError(f"field {name!r} is missing")


def _document(line: Mapping[str, Any]) -> KeyTokens:
    for name in ("id", "text_sha256"):
        if type(line[name]) is not str:
            raise ValueError(f"{name} is {shown_value(line[name])}, expected a string")
    if not re.fullmatch("[0-9a-f]{64}", line["text_sha256"]):
        raise ValueError(f"text_sha256 is {shown_value(line['text_sha256'])}, expected 64 hexadecimal digits")
    number = line["num_key_tokens"]
    if number is not None and (type(number) is not int or number < 0):
        raise ValueError(f"num_key_tokens is {shown_value(number)}, expected an integer or null")
    return KeyTokens(
        id=line["id"],
        text_sha256=line["text_sha256"],
        char_runs=_runs(line["char_runs"]),
        num_key_tokens=number,
    )


def _settings(line: Mapping[str, Any]) -> dict[str, Any]:
    for name, types in SETTINGS.items():
        value = line.get(name)
        if value is not None and (type(value) not in types or (type(value) is float and not math.isfinite(value))):
            raise ValueError(f"{name} is {shown_value(value)}, expected {types[-1].__name__} or null")
    return {name: line.get(name) for name in SETTINGS}


def _runs(runs: Any) -> npt.NDArray[np.int64]:
    if not isinstance(runs, list):
        raise ValueError(f"char_runs is {shown_value(runs)}, expected a list of [start, end]")
    before = 0
    for run in runs:
        if not (isinstance(run, list) and len(run) == 2 and all(type(place) is int for place in run)):
            raise ValueError(f"run {shown_value(run)} is not [start, end] in integers")
        start, end = run
        if not 0 <= start < end < 2**63:
            raise ValueError(f"run {shown_value(run)} is empty, reversed or negative; expected 0 <= start < end")
        if start < before:
            raise ValueError(f"run {run} begins before the run before it ends: runs must be in text order")
        before = end
    return merge_spans(as_spans(runs))


def import_upstream(folder: str | os.PathLike[str], documents: Iterable[Document]) -> Keys:
    """Key tokens from the ``slice_N.txt`` files of the published package (``perplexity/key_text/EVALUATOR`` there).

    File N belongs to document N, counted from 0; the package records neither its text nor its settings, which are
    therefore None except for the evaluator, which is the folder's name. A file is ``[start, end];[start, end];…`` in
    characters of the text that the package scored, and empty if it found no key token. The documents have to be
    truncated as that text was (the package decodes the first ``max_length - 1`` tokens).

    Args:
        folder: Folder with the files.
        documents: The documents, in the order in which the package scored them.

    Raises:
        UserError: A file is missing or not in this form, or has a run that is reversed, overlaps the one before or
            ends after the text; or two documents have the same id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: expected one with slice_0.txt, slice_1.txt, …")
    imported: dict[str, KeyTokens] = {}
    for number, document in enumerate(documents):
        path = folder / f"slice_{number}.txt"
        if document.id in imported:
            raise UserError(f"two documents have the id {document.id!r}: document ids must be unique")
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is missing, which should contain the key tokens of document {document.id!r} (number "
                f"{number + 1}): pass only the documents that have a file in this folder"
            ) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error
        imported[document.id] = KeyTokens(
            id=document.id,
            text_sha256=text_sha256(document.text),
            char_runs=parse_published_runs(path, content, len(document.text)),
        )
    return Keys(imported.values(), dict.fromkeys(SETTINGS) | {"evaluator": folder.resolve().name})


def parse_published_runs(path: Path, content: str, length: int) -> npt.NDArray[np.int64]:
    """The runs of one file of the published package; parsed strictly, and never evaluated as code.

    Args:
        path: Where the content is from, for messages.
        content: ``[start, end];[start, end];…``, or nothing.
        length: Number of characters of the text.

    Returns:
        ``(m, 2)`` runs, merged; empty ones are dropped.

    Raises:
        UserError: It is not in this form, or a run is reversed, overlaps the one before or ends after the text.
    """
    content = content.rstrip("\r\n")
    runs: list[tuple[int, int]] = []
    before = 0
    for piece in content.split(";") if content else []:
        match = PUBLISHED_RUN.fullmatch(piece)
        if match is None:
            raise UserError(f"{path}: {piece[:40]!r} is not a run such as [3, 7]")
        start, end = int(match[1]), int(match[2])
        if end < start:
            raise UserError(f"{path}: run {piece} is reversed, expected start <= end")
        if end > length:
            raise UserError(
                f"{path}: run {piece} ends after the document, which has {length} characters: "
                "the key tokens belong to another text, or the documents are in another order"
            )
        if end > start:  # an empty token of the published package has no characters to be key
            if start < before:
                raise UserError(f"{path}: run {piece} overlaps or precedes the run before it")
            runs.append((start, end))
            before = end
    return merge_spans(as_spans(runs))
