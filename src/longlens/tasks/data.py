"""Reads third-party data files for tasks, from a directory or the Hub, and hashes and checks them."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

from longlens.errors import UserError, one_line, shown, system_errors, utf8
from longlens.files import file_sha256, parse_json
from longlens.runs.jsonl import parse_lines
from longlens.tasks.base import Task

DATASET_FOLDER = "@"
"""Separator in the name of a Hub file: ends the name of the dataset, ``allenai/ai2_arc@ARC-Challenge/test.parquet``."""


class LocatedFile(NamedTuple):
    """A data file that was found.

    Attributes:
        path: Its path.
        described: Its name, sha256 and, if it is from the Hub, the dataset and the commit; for a sample's metadata.
    """

    path: Path
    described: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file that a task needs.

    Attributes:
        names: Possible paths in the directory, with ``/`` as the separator; the first existing one is used.
        source: Where users can get the file.
        schema: One-line description of its content.
        hub: Dataset on the Hub and file in it, as ``owner/name@path/in/it``, which is used if no directory is set;
            empty if the Hub does not have the file.
        member: The file inside a ``.zip``, if one of the names is a ``.zip``.
        raw_controls: Whether strings in its JSON Lines may contain unescaped control characters, because the published
            file contains some.
    """

    names: tuple[str, ...]
    source: str
    schema: str
    hub: str = ""
    member: str = ""
    raw_controls: bool = False

    @property
    def expected(self) -> str:
        """The expected content, for messages."""
        return f"expected {self.schema}, as in {self.source}"

    def find(self, task: str, folder: str | os.PathLike[str] | None, revision: str | None = None) -> LocatedFile:
        """Finds the file and describes it.

        Args:
            task: Name of the task, for messages.
            folder: The user's directory, or None for the Hub.
            revision: Branch, tag or commit of the Hub dataset.

        Raises:
            UserError: The file does not exist; the message contains its source and schema.
        """
        wanted = f"{' or '.join(self.names)} ({self.schema}), from {self.source}"
        if folder is None:
            if self.hub:
                return self._download(task, revision, wanted)
            raise UserError(
                f"{task} reads data that longlens does not include: put {wanted} into a folder, and pass `data_dir`"
            )
        path = self.place(folder)
        if path is None:
            raise UserError(f"{task}: no {' or '.join(self.names)} in {shown(folder)}: add {wanted}")
        return LocatedFile(path, {"file": path.name, "sha256": _sha256_of(path)})

    def place(self, folder: str | os.PathLike[str]) -> Path | None:
        """Path of the file in a directory, or in a copy of the Hub dataset as ``folder/owner/name``; else None."""
        repo, _, on_hub = self.hub.partition(DATASET_FOLDER)
        copies = [f"{repo}/{name}" for name in (on_hub, *self.names)] if repo else []
        return next((found for name in (*self.names, *copies) if (found := Path(folder, name)).is_file()), None)

    def read(
        self, task: str, folder: str | os.PathLike[str] | None, revision: str | None = None
    ) -> tuple[str, dict[str, str]]:
        """The text of the file, and its description.

        Raises:
            UserError: The file does not exist (see `find`), or is not UTF-8.
        """
        found = self.find(task, folder, revision)
        with system_errors(found.path):
            data = found.path.read_bytes()
        return utf8(data, shown(found.path)), found.described

    def rows(
        self, task: str, folder: str | os.PathLike[str] | None, revision: str | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The rows of the file, and its description.

        A ``.parquet`` file is read as Parquet. In a ``.zip`` file, `member` is read. All other files are JSON Lines, a
        JSON list, or a JSON object whose ``data`` is a list.

        Raises:
            UserError: The file does not exist (see `find`), is invalid or has no rows, or a row is not an object.
        """
        found = self.find(task, folder, revision)
        name = found.described["file"]
        if found.path.suffix == ".parquet":
            rows = self._parquet(found.path, name)
        else:
            with system_errors(found.path):
                data = self._member(found.path) if found.path.suffix == ".zip" else found.path.read_bytes()
            rows = self._json_rows(_escaped(data) if self.raw_controls else data, name)
        if not rows:
            raise self.wrong(name, "no rows")
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise self.wrong(f"{name}, row {number}", f"a {type(row).__name__} instead of an object")
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

    def _member(self, path: Path) -> bytes:
        try:
            with ZipFile(path) as archive:
                return archive.read(self.member)
        except KeyError as error:
            raise self.wrong(path.name, f"no {self.member} in it") from error
        except (BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
            raise self.wrong(path.name, f"not a readable ZIP file ({one_line(error)})") from error

    def _parquet(self, path: Path, name: str) -> list[Any]:
        from pyarrow import ArrowException, parquet

        try:
            return list(parquet.read_table(path).to_pylist())
        except (ArrowException, OSError) as error:
            raise self.wrong(name, f"not Parquet: {one_line(error)}") from error

    def _download(self, task: str, revision: str | None, wanted: str) -> LocatedFile:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        repo, _, name = self.hub.partition(DATASET_FOLDER)
        try:
            path = Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise UserError(
                f"{task}: cannot download {name} of the Hub dataset {repo} ({one_line(error)}): check the network and "
                f"the revision, or put {wanted} into a folder and pass it as `data_dir`"
            ) from error
        # Paths in the Hub's cache are snapshots/COMMIT/path/in/it.
        commit = path.parts[-1 - len(Path(name).parts)]
        return LocatedFile(path, {"file": path.name, "sha256": _sha256_of(path), "hub": repo, "commit": commit})

    def wrong(self, name: str, what: str) -> UserError:
        """The error about a file that does not have the schema."""
        return UserError(f"{name}: {what}; {self.expected}")

    def parse(self, text: str, name: str) -> Any:
        """Parses a JSON value.

        Raises:
            UserError: The text is not JSON.
        """
        return parse_json(text, name, self.expected)

    def get(self, value: Any, key: str, kind: type, place: str) -> Any:
        """``value[key]``, checked to have a type.

        Raises:
            UserError: The key is missing, or its value has another type.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get(key), kind):
            raise self.wrong(place, f"no {kind.__name__} {key!r}")
        return value[key]


def _escaped(data: bytes) -> bytes:
    """JSON Lines with all control characters escaped, except line ends."""
    return re.sub(rb"[\x00-\x09\x0b-\x1f]", lambda found: b"\\u%04x" % found[0][0], data.replace(b"\r\n", b"\n"))


@dataclass(frozen=True, kw_only=True)
class FolderTask(Task):
    """A task that reads files.

    Attributes:
        data_dir: The directory that contains them; by default they are read from the Hub, if it has them.
    """

    data_dir: str | os.PathLike[str] | None = None

    def files(self, lengths: Sequence[int] = ()) -> tuple[DataFile, ...]:
        """Files from which samples of these lengths are built, for lists and checks; by default only ``file``."""
        file = getattr(self, "file", None)
        return (file,) if isinstance(file, DataFile) else ()

    def check_index(self, index: int, count: int, file: str, what: str) -> None:
        """Checks that a file has a sample with that index.

        Raises:
            UserError: The file has fewer samples.
        """
        if index >= count:
            raise UserError(f"{self.name}: {file} has {count} {what}: request no more samples than that")


@dataclass(frozen=True, kw_only=True)
class HubTask(FolderTask):
    """A task that reads files from a directory or the Hub.

    Attributes:
        revision: Branch, tag or commit of the Hub dataset.
    """

    revision: str | None = None


def check_files(tasks: Iterable[Task], lengths: Sequence[int] = ()) -> None:
    """Reports all missing data files of several tasks in one error. A single one is reported by `DataFile.find`.

    Args:
        tasks: The tasks.
        lengths: Lengths of the samples, for tasks with one file per length.

    Raises:
        UserError: At least two files are missing.
    """
    missing: dict[str, dict[str, None]] = {}
    folder = None
    for task in (one for one in tasks if isinstance(one, FolderTask)):
        for file in task.files(lengths):
            given = task.data_dir
            if not file.hub if given is None else file.place(given) is None:
                missing.setdefault(file.source, {})[file.names[0]] = None
                folder = given
    count = sum(map(len, missing.values()))
    if count > 1:
        listed = "; ".join(
            f"{', '.join(names)}{'' if number else ' into a folder'}, from {source}"
            for number, (source, names) in enumerate(missing.items())
        )
        place = "no data folder is set" if folder is None else f"{shown(folder)} lacks {count} files"
        raise UserError(f"{place}: put {listed}; and pass `data_dir`")


def _sha256_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: The file cannot be read.
    """
    with system_errors(path):
        return file_sha256(path)
