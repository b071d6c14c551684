"""Reads and appends JSON Lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longlens.errors import UserError, shown, system_errors, utf8
from longlens.files import cannot_write, opened, parse_json

STEP = "correct or delete the line"


class Line(NamedTuple):
    """A line with a JSON value.

    Attributes:
        number: Line number from 1; blank lines count.
        start: Offset of its first byte in the file.
        place: File and line number, for messages: ``'answers.jsonl:3'``.
        value: The JSON value.
    """

    number: int
    start: int
    place: str
    value: Any

    def fields(self, expected: str = "an object with fields") -> dict[str, Any]:
        """The value, checked to be an object.

        Raises:
            UserError: The value is not an object; the message contains the expected value.
        """
        if not isinstance(self.value, dict):
            raise UserError(f"{self.place} is a JSON {type(self.value).__name__}, expected {expected}")
        return self.value


def read_lines(path: Path, *, step: str = STEP, unfinished: bool = False) -> Iterator[Line]:
    r"""The values of a file, with one line in memory at a time. Lines end only at ``\n``; blank lines are skipped.

    Args:
        path: The file, strict UTF-8, optionally compressed (see `longlens.files.opened`); a byte order mark at its
            start is removed.
        step: Next step for an invalid line, for messages.
        unfinished: Whether to skip a last line without ``\n``, which a killed process may leave.

    Raises:
        UserError: The file cannot be read, or a line is not UTF-8 or not JSON.
    """
    with opened(path) as file:
        yield from parse_lines(file, str(path), step=step, unfinished=unfinished)


def read_at(path: Path, start: int, *, step: str = STEP) -> Any:
    """The value of the line that begins at a byte offset (see `Line`) of an uncompressed file.

    Raises:
        UserError: The file cannot be read, or the line is not JSON.
    """
    with system_errors(path), path.open("rb") as file:
        file.seek(start)
        return parse_json(file.readline(), shown(path), step)


def parse_lines(lines: Iterable[bytes], name: str, *, step: str = STEP, unfinished: bool = False) -> Iterator[Line]:
    r"""The values of lines that were read from any source.

    Args:
        lines: The lines from the start of the file, each with its line end.
        name: Name of the file, for messages.
        step: Next step for an invalid line, for messages.
        unfinished: Whether to skip a last line without ``\n``.

    Raises:
        UserError: A line is not UTF-8 or not JSON.
    """
    start = 0
    for number, line in enumerate(lines, start=1):
        if unfinished and not line.endswith(b"\n"):
            return
        place = shown(f"{name}:{number}")
        text = utf8(line, place, start)
        if text.strip(" \t\r\n"):
            yield Line(number, start, place, parse_json(text, place, step))
        start += len(line)


def append_line(path: Path, row: Mapping[str, Any], *, sync: bool = False) -> None:
    """Appends an object as a line to a file, which is created if it is missing.

    An unfinished last line, from a killed process or a full disk, is removed first.

    Args:
        path: The file; its directory exists.
        row: An object that can be serialized as JSON.
        sync: Whether to return only after the line is on the disk; otherwise the operating system writes it later.

    Raises:
        UserError: The line cannot be written; earlier lines are kept.
    """
    # A lone surrogate is written as its JSON escape.
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    try:
        with path.open("a+b") as file:
            _cut_unfinished(file)
            file.write(line)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error, resumes=True) from error


def _cut_unfinished(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    at = end
    while at:
        start = max(0, at - 2**16)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            at = start + found + 1
            break
        at = start
    if at < end:
        file.truncate(at)
