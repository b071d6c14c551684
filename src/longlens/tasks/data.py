"""Files of other people's data that a task reads: from a folder or the hub, hashed, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from longlens.errors import UserError, one_line, shown, system_errors, utf8
from longlens.files import file_sha256, parse_json
from longlens.runs.jsonl import parse_lines

DATASET_FOLDER = "@"
"""In a hub file's name: ends the name of the data set, as in ``allenai/ai2_arc@ARC-Challenge/test.parquet``."""


class Found(NamedTuple):
    """A file of data.

    Attributes:
        path: Where it is.
        described: Its name, sha256 and, if it is from the hub, the data set and the commit; for a sample's metadata.
    """

    path: Path
    described: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file that a task needs.

    Attributes:
        names: Names that it may have in the folder, with ``/`` for folders within it; the first one found wins.
        source: Where it can be had.
        schema: What is in it, in a line.
        hub: Data set on the hub and file in it, as ``owner/name@path/in/it``, which is taken where no folder is given;
            empty where there is none.
    """

    names: tuple[str, ...]
    source: str
    schema: str
    hub: str = ""

    @property
    def expected(self) -> str:
        """What is in it, for messages."""
        return f"expected {self.schema}, as {self.source} has it"

    def find(self, task: str, folder: str | os.PathLike[str] | None, revision: str | None = None) -> Found:
        """The file and what describes it.

        Args:
            task: Which task wants it, for messages.
            folder: The user's, or None for the hub's.
            revision: Branch, tag or commit of the hub's data set.

        Raises:
            UserError: It is not there; says where it can be had and what is in it.
        """
        wanted = f"{' or '.join(self.names)} ({self.schema}), from {self.source}"
        if folder is None:
            if self.hub:
                return self._download(task, revision, wanted)
            raise UserError(
                f"{task} reads data that does not come with it: put into a folder {wanted}, and pass data_dir= "
                "(--data-dir)"
            )
        path = next((found for name in self.names if (found := Path(folder, name)).is_file()), None)
        if path is None:
            raise UserError(f"{task}: no {' or '.join(self.names)} in {shown(folder)}: put there {wanted}")
        return Found(path, {"file": path.name, "sha256": hashed(path)})

    def read(
        self, task: str, folder: str | os.PathLike[str] | None, revision: str | None = None
    ) -> tuple[str, dict[str, str]]:
        """The text of the file, and what describes it.

        Raises:
            UserError: It is not there (see `find`), or is not UTF-8.
        """
        found = self.find(task, folder, revision)
        with system_errors(found.path):
            data = found.path.read_bytes()
        return utf8(data, shown(found.path)), found.described

    def rows(
        self, task: str, folder: str | os.PathLike[str] | None, revision: str | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The rows of the file, and what describes it.

        A file that ends in ``.parquet`` is that; any other one is JSON Lines, a JSON list, or a JSON object whose
        ``data`` is a list.

        Raises:
            UserError: It is not there (see `find`), is broken, has no rows, or a row is no object.
        """
        found = self.find(task, folder, revision)
        name = found.described["file"]
        if found.path.suffix == ".parquet":
            rows = self._parquet(found.path, name)
        else:
            with system_errors(found.path):
                data = found.path.read_bytes()
            rows = self._json_rows(data, name)
        if not rows:
            raise self.wrong(name, "no rows")
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise self.wrong(f"{name}, row {number}", f"a {type(row).__name__} where an object should be")
        return rows, found.described

    def _json_rows(self, data: bytes, name: str) -> list[Any]:
        text = utf8(data, name)
        if text.lstrip()[:1] == "[":
            return list(self.parse(text, name))
        try:
            whole = self.parse(text, name)
        except UserError:  # several lines, each one a value
            return [line.value for line in parse_lines(BytesIO(data), name, step=self.expected)]
        return list(whole["data"]) if isinstance(whole, dict) and isinstance(whole.get("data"), list) else [whole]

    def _parquet(self, path: Path, name: str) -> list[Any]:
        from pyarrow import ArrowException, parquet

        try:
            return list(parquet.read_table(path).to_pylist())
        except (ArrowException, OSError) as error:
            raise self.wrong(name, f"not Parquet: {one_line(error)}") from error

    def _download(self, task: str, revision: str | None, wanted: str) -> Found:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        repo, _, name = self.hub.partition(DATASET_FOLDER)
        try:
            path = Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise UserError(
                f"{task}: cannot get {name} of the hub's data set {repo} ({one_line(error)}): check the network and "
                f"the revision, or put into a folder {wanted}, and pass data_dir= (--data-dir)"
            ) from error
        # The hub's cache is snapshots/COMMIT/path/in/it.
        commit = path.parts[-1 - len(Path(name).parts)]
        return Found(path, {"file": path.name, "sha256": hashed(path), "hub": repo, "commit": commit})

    def wrong(self, name: str, what: str) -> UserError:
        """What to say where the file does not have the schema."""
        return UserError(f"{name}: {what}; {self.expected}")

    def parse(self, text: str, name: str) -> Any:
        """A JSON value.

        Raises:
            UserError: It is none.
        """
        return parse_json(text, name, self.expected)

    def get(self, value: Any, key: str, kind: type, place: str) -> Any:
        """``value[key]``, checked to be of a type.

        Raises:
            UserError: It is not there, or is something else.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get(key), kind):
            raise self.wrong(place, f"no {kind.__name__} {key!r}")
        return value[key]


def hashed(path: Path) -> str:
    """sha256 of a file.

    Raises:
        UserError: It cannot be read.
    """
    with system_errors(path):
        return file_sha256(path)
