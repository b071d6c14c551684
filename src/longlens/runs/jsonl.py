"""Reading and appending JSON Lines."""

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
        number: From 1; blank lines count.
        start: Offset of its first byte in the file.
        place: File and number, for messages: ``'answers.jsonl:3'``.
        value: The JSON value.
    """

    number: int
    start: int
    place: str
    value: Any

    def fields(self, expected: str = "an object with fields") -> dict[str, Any]:
        """The value, checked to be an object.

        Raises:
            UserError: It is not an object; the message says what was expected.
        """
        if not isinstance(self.value, dict):
            raise UserError(f"{self.place} is a JSON {type(self.value).__name__}, expected {expected}")
        return self.value


def read_lines(path: Path, *, step: str = STEP, unfinished: bool = False) -> Iterator[Line]:
    r"""The values of a file, one line in memory at a time. Lines end at ``\n`` alone; blank ones are skipped.

    Args:
        path: The file, strict UTF-8, perhaps compressed (see `longlens.files.opened`); a byte order mark at its start
            is dropped.
        step: What to do about a broken line, for messages.
        unfinished: Whether a last line without ``\n`` is left out, as a killed process leaves one.

    Raises:
        UserError: The file cannot be read, or a line is not UTF-8 or not JSON.
    """
    with opened(path) as file:
        yield from parse_lines(file, str(path), step=step, unfinished=unfinished)


def read_at(path: Path, start: int, *, step: str = STEP) -> Any:
    """The value of the line that begins at a byte, see `Line`, of a file that is not compressed.

    Raises:
        UserError: The file cannot be read, or the line is not JSON.
    """
    with system_errors(path), path.open("rb") as file:
        file.seek(start)
        return parse_json(file.readline(), shown(path), step)


def parse_lines(lines: Iterable[bytes], name: str, *, step: str = STEP, unfinished: bool = False) -> Iterator[Line]:
    r"""The values of lines that are read elsewhere.

    Args:
        lines: Each with its end, from the start of the file.
        name: Name of the file, for messages.
        step: What to do about a broken line, for messages.
        unfinished: Whether a last line without ``\n`` is left out.

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
    """Adds an object as a line to a file, which is made if it is missing.

    An unfinished last line, which a killed process or a full disk left, is removed first.

    Args:
        path: The file; its folder exists.
        row: An object that can be written as JSON.
        sync: Whether the line is on the disk when this returns; otherwise it is with the operating system.

    Raises:
        UserError: It cannot be written; lines before it are kept.
    """
    # A lone surrogate becomes its escape, which is what JSON writes for it.
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
