"""Manages run directories: one writer, a manifest, and one rule for resuming.

A manifest contains a ``schema_version``, the identity of the run, and the ``versions`` with which it was started. A run
can be resumed if model and settings are the same (`refuse_other`); with other versions it resumes with a warning
(`warn_of_versions`).
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from longlens.errors import LonglensWarning, UserError, shown, shown_value
from longlens.files import cannot_write, read_json

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2
"""Schema version of manifests; since 2, the configuration of a model is recorded, see `longlens.runs.identity`."""
BY_WEIGHTS = 1
"""Schema version whose runs identify models only by weights and tokenizer; they can still be read."""
MAX_DIFFERENCES = 8
SEEN_SECONDS = 60.0
"""Timeout for a network file system to show a new folder on another node; NFS caches for a minute."""
PACKAGES = ("longlens", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


class LockedFolder:
    """A directory with one writer. It is created if it is missing, removed again if it stays empty, and locked with an
    OS lock, which ends with the process at the latest. Hidden files are ignored.

    Args:
        path: The directory.
        what: Its content, such as ``dataset``.
        marker: A file that every such directory contains; a non-empty directory without it is foreign.
        own: Other file names that are ignored.
        doing: Activity of the writer, such as ``training in``.
        example: Example of a name, for the message.
        rank: Rank of this process if several share the directory; each of them has its own lock.

    Raises:
        UserError: The path is a file or a foreign directory, is locked by another process, or cannot be created.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        *,
        marker: str = MANIFEST,
        own: Collection[str] = (),
        doing: str = "writing to",
        example: str,
        rank: int = 0,
    ) -> None:
        try:
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} is a file; expected a directory for the {what}, such as `out={example}`")
            names = {entry.name for entry in path.iterdir()} if path.exists() else set()
            foreign = {name for name in names if not name.startswith(".")} - {*own}
            if foreign and marker not in names:
                raise UserError(
                    f"{path} is not empty and contains no {what} (it has {shown(min(foreign))}): use a new folder"
                )
            self._path, self._created = path, not path.exists()
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error, resumes=True) from error
        self._lock_path = path / (f".lock-{rank:05d}" if rank else ".lock")
        self._lock = FileLock(self._lock_path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"another process is {doing} {path}: wait for it, or use another directory") from error
        except OSError as error:
            raise cannot_write(path, error, resumes=True) from error
        self._inode = self._inode_now()

    def _inode_now(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @property
    def is_there(self) -> bool:
        """Whether the folder is still the one that was locked: not deleted, moved or replaced."""
        return self._inode is not None and self._inode_now() == self._inode

    def check(self) -> None:
        """Raises if the directory was deleted or replaced, because writing would create a new and incomplete one.

        Raises:
            UserError: The directory was deleted or replaced.
        """
        if not self.is_there:
            raise UserError(
                f"{self._path} was deleted or moved while this process was writing: run the same command again"
            )

    def release(self) -> None:
        """Releases the lock. A directory that was created here and is still empty is removed."""
        if self._created and self.is_there and set(self._path.iterdir()) <= {self._lock_path}:
            with suppress(OSError):  # another process may start to write there at this moment
                self._lock_path.unlink(missing_ok=True)
                self._path.rmdir()
        self._lock.release()


def await_manifest(folder: Path, rank: int) -> None:
    """Waits until this process sees the directory that rank 0 created, for example on a network file system.

    Raises:
        UserError: The directory does not appear in time.
    """
    given_up = time.monotonic() + SEEN_SECONDS
    while not (folder / MANIFEST).is_file():
        if time.monotonic() > given_up:
            raise UserError(
                f"rank {rank} does not see {folder}, which rank 0 has created: use a directory on a shared file system"
            )
        time.sleep(SEEN_SECONDS / 100)


def make_manifest(record: Mapping[str, Any], *packages: str) -> dict[str, Any]:
    """Makes a manifest.

    Args:
        record: Identity of the run.
        packages: Packages that affect results, in addition to `PACKAGES`.
    """
    return {"schema_version": SCHEMA_VERSION, **record, "versions": versions(*packages)}


def read_manifest(folder: Path, *, step: str = "use another folder") -> dict[str, Any]:
    """The manifest of a directory, of this schema version or an older one.

    Args:
        folder: The run directory.
        step: Next step if the manifest is invalid, for the message.

    Raises:
        UserError: The manifest is invalid, or has another schema version.
    """
    manifest = read_json(folder / MANIFEST, step)
    check_schema_version(folder / MANIFEST, manifest)
    return manifest


def check_schema_version(path: Path, manifest: Mapping[str, Any]) -> None:
    """Rejects a manifest of another version of longlens that this version cannot read.

    Raises:
        UserError: The schema version is unsupported or missing.
    """
    version = manifest.get("schema_version")
    if version is None:
        raise UserError(f"{path} is not a manifest of longlens (it has no schema_version): use another folder")
    if type(version) is not int or version not in (BY_WEIGHTS, SCHEMA_VERSION):
        raise UserError(
            f"{path} has schema_version {shown_value(version)}, but this longlens reads {SCHEMA_VERSION}: install the "
            "version of longlens that wrote it, or use another folder"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Differences between the settings of a directory and those of this run, each as ``NAME is X there and Y here``.

    Args:
        there: Settings in the directory.
        here: Settings of this run.
    """
    return [
        f"{name} is {shown_value(there.get(name))} there and {shown_value(here.get(name))} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]


def refuse_other(folder: Path, what: str, differs: Sequence[str], *, models: tuple[str, str] | None = None) -> None:
    """Raises if a run has another identity.

    Args:
        folder: The run directory.
        what: Its content, for the message, such as ``dataset``.
        differs: See `differences` and `longlens.runs.identity.model_differences`.
        models: Names of the model there and of the one here, if they are known to be different; shown instead of
            hashes.

    Raises:
        UserError: The identities differ; the message shows both values.
    """
    if models is not None and models[0] != models[1]:
        raise UserError(
            f"{folder} contains a different {what}: its model is {shown_value(models[0])}, but "
            f"{shown_value(models[1])} was given. Use another folder, or the same model"
        )
    if differs:
        raise UserError(
            f"{folder} contains a different {what}: {'; '.join(differs[:MAX_DIFFERENCES])}. Use another folder, or the "
            "same settings"
        )


def versions(*more: str) -> dict[str, str]:
    """Versions of packages that affect results, for a manifest. Packages without metadata (a checkout) are omitted.

    Args:
        more: Packages in addition to `PACKAGES`.
    """
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def warn_by_weights(folder: Path) -> None:
    """Warns that a run of an older longlens identifies its model only by weights and tokenizer.

    Warns:
        LonglensWarning: Always.
    """
    warnings.warn(
        f"{folder} was written by an older longlens without the model's configuration: it cannot be distinguished "
        "from the same weights with another RoPE method or attention window; to be sure, run again in a new directory",
        LonglensWarning,
        stacklevel=3,
    )


def warn_of_versions(folder: Path, manifest: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """The rule for resuming a run with other versions: it is allowed, with a warning.

    Args:
        folder: The run directory.
        manifest: Its manifest, of which ``versions`` is read.
        here: Versions of this process.

    Warns:
        LonglensWarning: A package that both contain has another version.
    """
    found = manifest.get("versions")
    there = found if isinstance(found, Mapping) else {}
    changes = [
        f"{name} {str(there[name])[:40]} -> {here[name]}" for name in here if there.get(name) not in (None, here[name])
    ]
    if changes:
        warnings.warn(
            f"{folder} was started with other versions ({', '.join(changes)}): results can differ in the last digits, "
            "or more if a library changed its computation",
            LonglensWarning,
            stacklevel=2,
        )
