"""JSON Lines of passages, of which a file may have gigabytes: keys are kept, a row is read when it is wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlens.errors import shown, system_errors, utf8
from longlens.tasks.data import DataFile

Key = Callable[[dict[str, Any], str], "str | None"]
"""``key(row, place)``: which question a row is of, or None for a row that does not count; errors name the place."""


@dataclass(frozen=True, slots=True)
class Lines:
    """A file of rows.

    Attributes:
        file: What it should be.
        path: Where it is.
        described: Its name and sha256.
        starts: First byte of each row that counts.
        numbers: Its line, from 1.
        keys: Which question it is of.
    """

    file: DataFile
    path: Path
    described: dict[str, str]
    starts: Sequence[int]
    numbers: Sequence[int]
    keys: Sequence[str]

    def place(self, index: int) -> str:
        """What messages call a row."""
        return f"{self.described['file']}, line {self.numbers[index]}"

    def row(self, index: int) -> dict[str, Any]:
        """A row."""
        start, place = self.starts[index], self.place(index)
        with system_errors(self.path), self.path.open("rb") as stream:
            stream.seek(start)
            line = stream.readline()
        return _parsed(self.file, line, place, start)


def read_lines(file: DataFile, task: str, folder: str | os.PathLike[str] | None, key: Key) -> Lines:
    """The file's keys; every line is parsed, none is kept.

    Raises:
        UserError: The file is missing or broken, or has no row that counts.
    """
    found = file.find(task, folder)
    name = found.described["file"]
    starts, numbers, keys = [], [], []
    start = 0
    with system_errors(found.path), found.path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                place = f"{name}, line {number}"
                wanted = key(_parsed(file, line, place, start), place)
                if wanted is not None:
                    starts.append(start)
                    numbers.append(number)
                    keys.append(wanted)
            start += len(line)
    if not keys:
        raise file.wrong(shown(found.path), "no rows")
    return Lines(file, found.path, found.described, starts, numbers, keys)


def _parsed(file: DataFile, line: bytes, place: str, start: int) -> dict[str, Any]:
    row = file.parse(utf8(line, place, start), place)
    if not isinstance(row, dict):
        raise file.wrong(place, f"a {type(row).__name__} where an object should be")
    return row
