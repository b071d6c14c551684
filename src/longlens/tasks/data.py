"""Files of other people's data that a task reads: found in a folder, hashed, checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlens.corpus.document import shown, system_errors, utf8
from longlens.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file that a task needs.

    Attributes:
        names: Names that it may have in the folder, the first one wins.
        source: Where it can be had.
        schema: What is in it, in a line.
    """

    names: tuple[str, ...]
    source: str
    schema: str

    def read(self, task: str, folder: str | os.PathLike[str] | None) -> tuple[str, dict[str, str]]:
        """The text of the file, and its name and sha256.

        Raises:
            UserError: It is not there, or is not UTF-8; says where it can be had and what is in it.
        """
        wanted = f"{' or '.join(self.names)} ({self.schema}), from {self.source}"
        if folder is None:
            raise UserError(
                f"{task} reads data that does not come with it: put into a folder {wanted}, and pass data_dir="
            )
        path = next((found for name in self.names if (found := Path(folder, name)).is_file()), None)
        if path is None:
            raise UserError(f"{task}: no {' or '.join(self.names)} in {shown(folder)}: put there {wanted}")
        with system_errors(path):
            data = path.read_bytes()
        return utf8(data, shown(path)), {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}

    def wrong(self, name: str, what: str) -> UserError:
        """What to say where the file does not have the schema."""
        return UserError(f"{name}: {what}; expected {self.schema}, as {self.source} has it")

    def parse(self, text: str, name: str) -> Any:
        """A JSON value.

        Raises:
            UserError: It is none.
        """
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise self.wrong(name, f"not JSON at line {error.lineno}: {error.msg}") from error

    def get(self, value: Any, key: str, kind: type, place: str) -> Any:
        """``value[key]``, checked to be of a type.

        Raises:
            UserError: It is not there, or is something else.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get(key), kind):
            raise self.wrong(place, f"no {kind.__name__} {key!r}")
        return value[key]


def jsonl(file: DataFile, text: str, name: str) -> Sequence[Any]:
    """The values of a text with one JSON value a line; empty lines are left out.

    Raises:
        UserError: A line is no JSON.
    """
    lines = enumerate(text.split("\n"), start=1)
    return [file.parse(line, f"{name}, line {number}") for number, line in lines if line.strip()]
