"""Files of other people's data that a task reads: from a folder or the Hub, hashed, checked."""

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
"""In a Hub file's name: ends the name of the dataset, as in ``allenai/ai2_arc@ARC-Challenge/test.parquet``."""


class LocatedFile(NamedTuple):
    """A file of data.

    Attributes:
        path: Where it is.
        described: Its name, sha256 and, if it is from the Hub, the dataset and the commit; for a sample's metadata.
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
        hub: Dataset on the Hub and file in it, as ``owner/name@path/in/it``, which is taken where no folder is given;
            empty if there is none.
        member: The file in a ``.zip``, where one of the names is that.
        raw_controls: Whether texts in its JSON Lines may have control characters that JSON wants escaped, since the
            published file has some.
    """

    names: tuple[str, ...]
    source: str
    schema: str
    hub: str = ""
    member: str = ""
    raw_controls: bool = False

    @property
    def expected(self) -> str:
        """What is in it, for messages."""
        return f"expected {self.schema}, as {self.source} has it"

    def find(self, task: str, folder: str | os.PathLike[str] | None, revision: str | None = None) -> LocatedFile:
        """The file and what describes it.

        Args:
            task: Which task wants it, for messages.
            folder: The user's, or None for the Hub's.
            revision: Branch, tag or commit of the Hub dataset.

        Raises:
            UserError: It is not there; says where it can be had and what is in it.
        """
        wanted = f"{' or '.join(self.names)} ({self.schema}), from {self.source}"
        if folder is None:
            if self.hub:
                return self._download(task, revision, wanted)
            raise UserError(
                f"{task} reads data that does not come with it: put into a folder {wanted}, and pass `data_dir`"
            )
        path = self.place(folder)
        if path is None:
            raise UserError(f"{task}: no {' or '.join(self.names)} in {shown(folder)}: put there {wanted}")
        return LocatedFile(path, {"file": path.name, "sha256": _sha256_of(path)})

    def place(self, folder: str | os.PathLike[str]) -> Path | None:
        """Where the file is in a folder, or in a copy of the Hub dataset as ``folder/owner/name``; else None."""
        repo, _, on_hub = self.hub.partition(DATASET_FOLDER)
        copies = [f"{repo}/{name}" for name in (on_hub, *self.names)] if repo else []
        return next((found for name in (*self.names, *copies) if (found := Path(folder, name)).is_file()), None)

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

        A file that ends in ``.parquet`` is that, one that ends in ``.zip`` has `member`; any other one is JSON Lines, a
        JSON list, or a JSON object whose ``data`` is a list.

        Raises:
            UserError: It is not there (see `find`), is broken, has no rows, or a row is no object.
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

    def _member(self, path: Path) -> bytes:
        try:
            with ZipFile(path) as archive:
                return archive.read(self.member)
        except KeyError as error:
            raise self.wrong(path.name, f"no {self.member} in it") from error
        except (BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
            raise self.wrong(path.name, f"not a ZIP file that can be read ({one_line(error)})") from error

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
                f"{task}: cannot get {name} of the Hub dataset {repo} ({one_line(error)}): check the network and "
                f"the revision, or put {wanted} into a folder and pass it as `data_dir`"
            ) from error
        # The Hub's cache is snapshots/COMMIT/path/in/it.
        commit = path.parts[-1 - len(Path(name).parts)]
        return LocatedFile(path, {"file": path.name, "sha256": _sha256_of(path), "hub": repo, "commit": commit})

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


def _escaped(data: bytes) -> bytes:
    """JSON Lines whose control characters, but line ends, are escaped."""
    return re.sub(rb"[\x00-\x09\x0b-\x1f]", lambda found: b"\\u%04x" % found[0][0], data.replace(b"\r\n", b"\n"))


@dataclass(frozen=True, kw_only=True)
class FolderTask(Task):
    """A task that reads files.

    Attributes:
        data_dir: The folder that has them; the Hub's by default, where the Hub has them.
    """

    data_dir: str | os.PathLike[str] | None = None

    def files(self, lengths: Sequence[int] = ()) -> tuple[DataFile, ...]:
        """The files that samples of these lengths are made of, for lists and checks: its ``file``, if no others."""
        file = getattr(self, "file", None)
        return (file,) if isinstance(file, DataFile) else ()

    def check_index(self, index: int, count: int, file: str, what: str) -> None:
        """Checks that a file has a sample of that index.

        Raises:
            UserError: It has fewer.
        """
        if index >= count:
            raise UserError(f"{self.name}: {file} has {count} {what}: ask for as many samples at most")


@dataclass(frozen=True, kw_only=True)
class HubTask(FolderTask):
    """A task that reads files of a folder or of the Hub.

    Attributes:
        revision: Branch, tag or commit of the Hub dataset.
    """

    revision: str | None = None


def check_files(tasks: Iterable[Task], lengths: Sequence[int] = ()) -> None:
    """Names all missing data files of several tasks at once; a single one is left to `DataFile.find`.

    Args:
        tasks: The tasks.
        lengths: Lengths of the samples, where files are of a length.

    Raises:
        UserError: Two files or more are missing.
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
        place = "no folder of data is given" if folder is None else f"{shown(folder)} lacks {count} files"
        raise UserError(f"{place}: put {listed}; and pass `data_dir`")


def _sha256_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: It cannot be read.
    """
    with system_errors(path):
        return file_sha256(path)
