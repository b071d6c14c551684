"""Folders with one writer, and the versions that a run was made with."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from longlens.errors import LonglensWarning, UserError, shown
from longlens.files import cannot_write

PACKAGES = ("longlens", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


def hold(lock: Path, doing: str) -> FileLock:
    """Takes an OS lock, which ends with the process at the latest.

    Args:
        lock: The lock's file.
        doing: What its holder does in the folder, such as ``writing to``.

    Raises:
        UserError: Another process has it, or the file cannot be made.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is {doing} {lock.parent}: wait for it, or give another folder") from error
    except OSError as error:
        raise cannot_write(lock.parent, error, resumes=True) from error
    return held


class OwnFolder:
    """A folder with one writer: made if it is missing, locked, and removed again if nothing came of it.

    Hidden files do not count as what it holds.

    Args:
        path: The folder.
        what: What it holds, such as ``dataset``.
        marker: A file that every such folder has; one that is not empty and lacks it is foreign.
        own: Other names in it that do not count.
        doing: As in `hold`.
        example: A name for the message.
        lock: Name of the lock's file; several writers that share a folder have one each.

    Raises:
        UserError: It is a file or a foreign folder, another process has it, or it cannot be made.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        *,
        marker: str,
        own: Collection[str] = (),
        doing: str,
        example: str,
        lock: str = ".lock",
    ) -> None:
        try:
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} is a file; give a folder for the {what}, such as -o {example}")
            names = {entry.name for entry in path.iterdir()} if path.exists() else set()
            foreign = {name for name in names if not name.startswith(".")} - {*own}
            if foreign and marker not in names:
                raise UserError(
                    f"{path} is not empty and holds no {what} (it has {shown(min(foreign))}): give a new folder"
                )
            self._path, self._created = path, not path.exists()
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error, resumes=True) from error
        self._lock_name = lock
        self._lock = hold(path / lock, doing)
        self._identity = self._found()

    def _found(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @property
    def is_there(self) -> bool:
        """Whether the folder is still the one that was locked: not deleted, moved or replaced."""
        return self._identity is not None and self._found() == self._identity

    def check(self) -> None:
        """Refuses to write into a folder that has been deleted or replaced, which would be a new and incomplete one.

        Raises:
            UserError: It has.
        """
        if not self.is_there:
            raise UserError(
                f"{self._path} was deleted or moved while this process was writing to it: run the same command again"
            )

    def release(self) -> None:
        """Releases the lock; a folder that was made here and holds nothing is removed."""
        if self._created and self.is_there and {entry.name for entry in self._path.iterdir()} <= {self._lock_name}:
            (self._path / self._lock_name).unlink(missing_ok=True)
            self._path.rmdir()
        self._lock.release()


def versions(*more: str) -> dict[str, str]:
    """Versions of what computes, for a manifest; what is not installed (longlens in a checkout) has none.

    Args:
        more: Packages beside `PACKAGES`.
    """
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def warn_by_weights(folder: Path) -> None:
    """Says of a run of an older longlens how its model is told from others.

    Warns:
        LonglensWarning: Always.
    """
    warnings.warn(
        f"{folder} was made by an older longlens, which recorded no configuration: its model is identified by weights "
        "and tokenizer alone, so it cannot be told from the same weights with another RoPE method or attention window; "
        "to be sure, run again into a new folder",
        LonglensWarning,
        stacklevel=3,
    )


def warn_of_versions(folder: Path, manifest: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """The one rule for a run that is continued with other versions: it is allowed, and said.

    Args:
        folder: Of the run.
        manifest: What is there; its ``versions`` count.
        here: Of this process.

    Warns:
        LonglensWarning: A package that both name has another version.
    """
    found = manifest.get("versions")
    there = found if isinstance(found, Mapping) else {}
    changes = [
        f"{name} {str(there[name])[:40]} -> {here[name]}" for name in here if there.get(name) not in (None, here[name])
    ]
    if changes:
        warnings.warn(
            f"{folder} was begun with other versions ({', '.join(changes)}): numbers can differ in their last digits, "
            "or more where a library changed what it computes",
            LonglensWarning,
            stacklevel=2,
        )
