"""JSON Lines of passages, of which a file may have gigabytes: keys are kept, a row is read when it is wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlens.errors import shown, system_errors, utf8
from longlens.files import parse_json
from longlens.runs import jsonl
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
            text = utf8(stream.readline(), place, start)
        found: dict[str, Any] = parse_json(text, place, self.file.expected)  # an object when its key was read
        return found


def read_lines(file: DataFile, task: str, folder: str | os.PathLike[str] | None, key: Key) -> Lines:
    """The file's keys; every line is parsed, none is kept.

    Raises:
        UserError: The file is missing or broken, or has no row that counts.
    """
    found = file.find(task, folder)
    name = found.described["file"]
    starts, numbers, keys = [], [], []
    for line in jsonl.read_lines(found.path, step=file.expected):
        place = f"{name}, line {line.number}"
        if not isinstance(line.value, dict):
            raise file.wrong(place, f"a {type(line.value).__name__} where an object should be")
        wanted = key(line.value, place)
        if wanted is not None:
            starts.append(line.start)
            numbers.append(line.number)
            keys.append(wanted)
    if not keys:
        raise file.wrong(shown(found.path), "no rows")
    return Lines(file, found.path, found.described, starts, numbers, keys)
