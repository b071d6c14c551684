"""The folder of a training run: its identity, its complete checkpoints, and the log.

::

    OUT/recipe.yaml             all settings; written first, and another recipe is rejected
    OUT/data/                   the rows, if the recipe makes them (`longlens.data`)
    OUT/evaluation/             scores and key tokens of an evaluator
    OUT/manifest.json           identity of the run: weights, tokenizer, rows, processes; versions
    OUT/checkpoints/            checkpoints of the Trainer; one with longlens.json is complete
    OUT/log.jsonl               one line per logged step
    OUT/model/                  the trained model; OUT/model-after/ if the recipe has `after`
    OUT/result.json             written last: if it exists, the run is complete
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from longlens.errors import UserError, system_errors, utf8
from longlens.files import cannot_write, file_sha256, read_json, replacing, write_json
from longlens.runs.folder import (
    MANIFEST,
    LockedFolder,
    differences,
    make_manifest,
    read_manifest,
    refuse_other,
    warn_by_weights,
    warn_of_versions,
)
from longlens.runs.jsonl import read_lines
from longlens.settings.recipe import parse_yaml, write_yaml

PACKAGES = ("accelerate", "datasets")
"""Packages that affect results, in addition to the usual ones."""
WHOLE = "longlens.json"
"""File in a checkpoint, written after all others."""
STEP = "delete the line; nothing but the log itself is lost"
_OWN = {".lock", "cache"}
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class RunFolder:
    """The one writer of a run, under an OS lock.

    Args:
        path: The folder.
        settings: Settings of the run; a folder with different settings is rejected.
        result: Keys that the result of a completed run must have.

    Attributes:
        path: The folder.
        result: Result of the run if it is complete; else None.

    Raises:
        UserError: Another process is writing there, the folder contains something else, or it was started with another
            recipe.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, result: Collection[str] = ()) -> None:
        self.path, self._settings = path, dict(settings)
        self.checkpoints, self.log = path / "checkpoints", path / "log.jsonl"
        self._own = LockedFolder(path, "run", marker="recipe.yaml", own=_OWN, doing="training in", example="run")
        try:
            self._claim()
            done = path / "result.json"
            step = f"delete {done}, and run the same command again"
            self.result = read_json(done, step) if done.exists() else None
            lacking = [] if self.result is None else [name for name in result if name not in self.result]
            if lacking:
                raise UserError(f"{done} is broken (it has no {lacking[0]}): {step}")
        except BaseException:
            self._own.release()
            raise

    def _claim(self) -> None:
        recipe = self.path / "recipe.yaml"
        if recipe.exists():
            with system_errors(recipe):
                text = utf8(recipe.read_bytes(), str(recipe))
            have = parse_yaml(text, f"{recipe}", "use another folder")
            refuse_other(self.path, "run", differences(_flat(have), _flat(self._settings)))
            return
        with replacing(recipe) as file:
            file.write("# All settings of this run.\n" + write_yaml(self._settings))

    def check(self) -> None:
        """Raises if the folder was deleted or moved in the meantime.

        Raises:
            UserError: The folder was deleted or moved.
        """
        self._own.check()

    def bind(self, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """Writes the identity of the run, or compares it with the existing one.

        Returns:
            Content of the manifest, which has fewer keys in a run of an older longlens.

        Raises:
            UserError: The model, the tokenizer, the rows or the number of processes differ.

        Warns:
            LonglensWarning: The run was started with other versions, or by a longlens version that did not record the
                configuration.
        """
        self.check()
        path, here = self.path / MANIFEST, make_manifest({"run": dict(manifest)}, *PACKAGES)
        if not path.exists():
            write_json(path, here)
            return manifest
        have = read_manifest(self.path)
        there = have.get("run")
        if not isinstance(there, dict):
            raise UserError(f"{path} does not describe a run (no key `run`): use another folder")
        is_old = "config" not in there
        known = {name: value for name, value in manifest.items() if name in there or not is_old}
        refuse_other(self.path, "run", differences(_flat(there), _flat(known)))
        if is_old:
            warn_by_weights(self.path)
        warn_of_versions(self.path, have, here["versions"])
        return there

    def last_checkpoint(self, run: str) -> Path | None:
        """The newest complete checkpoint; incomplete ones left by a killed run are deleted.

        Args:
            run: Identifier of the run.

        Raises:
            UserError: The checkpoint belongs to another run, or one of its files has changed since it was written.
        """
        whole = []
        for _, folder in self._all_checkpoints():
            if (folder / WHOLE).is_file():
                whole.append(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        if not whole:
            return None
        folder = whole[-1]
        before = whole[-2].name if len(whole) > 1 else "the start"
        step = f"delete {folder}, and run the same command again, it resumes from {before}"
        content = read_json(folder / WHOLE, step)
        if content.get("run") != run:
            raise UserError(
                f"{folder} is a checkpoint of another run: remove it from {self.checkpoints}, or use another folder"
            )
        files = content.get("files", {})  # longlens 0.1 wrote none
        for name, sha256 in files.items() if isinstance(files, dict) else ():
            file = folder / name
            with system_errors(file):
                if not file.is_file() or file_sha256(file) != sha256:
                    raise UserError(f"{file} is damaged (not as it was written): {step}")
        return folder

    def commit_checkpoint(self, step: int, run: str, keep: int) -> None:
        """Marks the checkpoint of a step as complete, and deletes all but the newest ``keep``.

        Raises:
            UserError: The folder was deleted in the meantime.
        """
        self.check()
        folder = self.checkpoints / f"checkpoint-{step}"
        files = {
            path.relative_to(folder).as_posix(): file_sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        write_json(folder / WHOLE, {"schema_version": 1, "run": run, "step": step, "files": files})
        for _, folder in self._all_checkpoints()[:-keep]:
            # First the file that marks it as complete: a deletion may be interrupted as well.
            (folder / WHOLE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    def _all_checkpoints(self) -> list[tuple[int, Path]]:
        folders = self.checkpoints.glob("checkpoint-*") if self.checkpoints.is_dir() else ()
        found = [(int(match[1]), folder) for folder in folders if (match := _CHECKPOINT.fullmatch(folder.name))]
        return sorted(found)

    def drop_half_written(self) -> None:
        """Deletes incomplete checkpoints, which frees space on a full disk."""
        for _, folder in self._all_checkpoints():
            if not (folder / WHOLE).is_file():
                shutil.rmtree(folder, ignore_errors=True)

    def cut_log(self, step: int) -> None:
        """Keeps the lines of the log up to the step from which the run resumes.

        Raises:
            UserError: A line is broken.
        """
        lines = [line for line in read_log(self.log) if line["step"] <= step]
        with replacing(self.log) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def add_to_log(self, line: Mapping[str, Any]) -> None:
        """Appends a line; numbers that are not finite become null.

        Raises:
            UserError: It cannot be written.
        """
        self.check()
        plain = {name: None if _is_endless(value) else value for name, value in line.items()}
        try:
            with self.log.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(plain) + "\n")
        except OSError as error:
            raise cannot_write(self.log, error, resumes=True) from error

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result, and deletes what only training needed."""
        self.check()
        write_json(self.path / "result.json", result)
        shutil.rmtree(self.path / "cache", ignore_errors=True)
        self.result = dict(result)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error, no file may remain that binds the folder to settings for which no output exists.
        if error is not None and self._own.is_there and not self._has_begun():
            shutil.rmtree(self.path / "cache", ignore_errors=True)
            for name in ("recipe.yaml", MANIFEST):
                (self.path / name).unlink(missing_ok=True)
        self._own.release()

    def _has_begun(self) -> bool:
        others = {entry.name for entry in self.path.iterdir()} - _OWN - {"recipe.yaml", MANIFEST}
        return bool(others)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; an incomplete last line left by a killed run is ignored.

    Raises:
        UserError: Another line is broken.
    """
    found = []
    for line in read_lines(path, step=STEP, unfinished=True) if path.is_file() else ():
        content = line.fields('an object with "step"')
        if type(content.get("step")) is not int:
            raise UserError(f'{line.place} has no number as "step": {STEP}')
        found.append(content)
    return found


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens ``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    if not isinstance(content, dict):
        return {prefix.rstrip("."): content}
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= _flat(value, f"{prefix}{name}.")
    return found


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
