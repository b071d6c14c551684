"""What run folders share: whether a folder is still the one that was opened, and who may continue it."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from longlens.errors import LonglensWarning, UserError

PACKAGES = ("longlens", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


class OpenedFolder:
    """A folder that is written to for a long time, and may be deleted or replaced by others meanwhile.

    Attributes:
        path: The folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = _inode(path)

    def check(self) -> None:
        """Checks that it is there, so that nothing is written into a new folder of its name.

        Raises:
            UserError: It was deleted, moved or replaced.
        """
        try:
            same = _inode(self.path) == self._opened
        except OSError:
            same = False
        if not same:
            raise UserError(
                f"{self.path} was deleted or moved while this process was writing to it: run the same command again, "
                "which starts anew in a new folder"
            )


def _inode(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


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


def warn_of_versions(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """The one rule for a run that is continued with other versions: it is allowed, and said.

    Args:
        folder: Of the run.
        there: ``versions`` of its manifest.
        here: Of this process.

    Warns:
        LonglensWarning: A package that both name has another version.
    """
    changes = [f"{name} {there[name]} -> {here[name]}" for name in here if there.get(name) not in (None, here[name])]
    if changes:
        warnings.warn(
            f"{folder} was begun with other versions ({', '.join(changes)}): numbers can differ in their last digits, "
            "or more where a library changed what it computes",
            LonglensWarning,
            stacklevel=2,
        )
