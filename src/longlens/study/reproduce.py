"""``longlens study reproduce``: runs experiments in run directories; a killed run can be resumed.

::

    OUT/recipe.yaml        all settings except the seeds, and the inputs; written first, must match when resuming
    OUT/...                results of each step: a JSON file or a directory, written atomically; existing ones are kept
    OUT/seconds.jsonl      duration of each step
    OUT/result.json        result of `reproduce`, written at the end of each run
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, model_validator

from longlens.errors import UserError
from longlens.files import cannot_write, read_json, write_json
from longlens.progress import Progress
from longlens.runs.folder import versions
from longlens.runs.jsonl import append_line, read_lines
from longlens.settings.recipe import Integer, Settings, assignment, parse, read_yaml, section_at
from longlens.train.folder import RunFolder

_LOGGER = logging.getLogger(__name__)
SCHEMA_VERSION = 1
STUDIES = {
    "answers": "longlens.study.answers.run",
    "correlation": "longlens.study.correlation_study.run",
    "cost": "longlens.study.cost",
    "extension": "longlens.study.extension.run",
    "longce": "longlens.study.longce.run",
}
"""Experiments by name: the module that defines the `Study` as ``STUDY``."""


class StudySettings(Settings):
    """Base class of an experiment's settings; a recipe contains all of them.

    Attributes:
        seeds: Seeds of the runs; more can be added to a run directory.
    """

    seeds: tuple[Integer, ...] = Field(strict=False, min_length=1)
    free: ClassVar[frozenset[str]] = frozenset({"seeds"})
    """Settings that may differ from those of an existing run directory."""

    def resolved(self) -> dict[str, Any]:
        """Returns all settings as JSON."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _check_seeds(self) -> StudySettings:
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds are {list(self.seeds)}; expected distinct integers of at least 0, such as 1,2,3")
        return self


class Table(NamedTuple):
    """A table of results.

    Attributes:
        title: Sentence above the table.
        columns: Column titles.
        rows: Cells.
        left: Number of text columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


class Steps:
    """The steps of an experiment in its run directory; each step is run once.

    Args:
        path: The run directory.
        progress: Shows the progress of the experiment.

    Attributes:
        path: The run directory.
        progress: As the argument.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path, self.progress = path, progress
        self._seconds = path / "seconds.jsonl"

    def json(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the content of ``OUT/NAME``, which is created if it does not exist.

        Args:
            name: File name, such as ``"runs/pi-ce-1.json"``.
            make: Runs the step.
        """
        path = self.path / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._timed(name):
                write_json(path, make())
        return read_json(path, f"delete {path}, and run the same command again")

    def folder(self, name: str, make: Callable[[Path], None]) -> Path:
        """Returns the path of ``OUT/NAME``, which is created if it does not exist.

        Args:
            name: Directory name, such as ``"base"``.
            make: Writes the content to an empty directory, which is renamed when it is complete.
        """
        path = self.path / name
        if not path.exists():
            temporary = path.with_name(f".{path.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
            temporary.mkdir(parents=True)
            with self._timed(name):
                make(temporary)
                os.replace(temporary, path)
        return path

    def seconds(self) -> dict[str, float]:
        """Returns the duration of each step, by its name."""
        if not self._seconds.exists():
            return {}
        lines = read_lines(self._seconds, unfinished=True)
        return {line.value["step"]: float(line.value["seconds"]) for line in lines}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Records the duration of a step, if it succeeds."""
        started = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - started, 3)
        append_line(self._seconds, {"step": name, "seconds": seconds})
        _LOGGER.info(f"{name}: {seconds:.1f} s")


class Inputs(NamedTuple):
    """Inputs of an experiment, which are read before anything is written.

    Attributes:
        identity: Values that must match for a run to be resumed, such as the hash of a text.
        content: The data, for `Study.run`.
    """

    identity: dict[str, Any]
    content: Any = None


class Study(NamedTuple):
    """An experiment.

    Attributes:
        settings: Class of the settings; ``recipes/studies/NAME.yaml`` contains the values.
        run: Runs the missing steps and summarizes all steps, from the settings, the steps and the content of the
            inputs. It returns the experiment's part of result.json.
        tables: Formats such a result as tables.
        read: Reads the inputs.
    """

    settings: type[StudySettings]
    run: Callable[[Any, Steps, Any], dict[str, Any]]
    tables: Callable[[Mapping[str, Any]], Sequence[Table]]
    read: Callable[[Any], Inputs]


def find_study(name: str) -> Study:
    """Returns an experiment by name.

    Raises:
        UserError: There is no experiment with this name.
    """
    if name not in STUDIES:
        raise UserError(f"no study {name!r}; expected one of {', '.join(STUDIES)}")
    found: Study = import_module(STUDIES[name]).STUDY
    return found


def read_study(
    name: str,
    recipe: str | os.PathLike[str] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    changes: Sequence[str] = (),
) -> StudySettings:
    """Reads the settings of an experiment.

    Args:
        name: Name of the experiment.
        recipe: A YAML file; by default the recipe that comes with longlens.
        seeds: Seeds, instead of the recipe's.
        changes: Assignments such as ``samples=10`` or ``training.steps=20``; values are YAML.

    Raises:
        UserError: The experiment or recipe does not exist, it is not YAML, a key is unknown or missing, or a value is
            invalid.
    """
    kind, recipe = find_study(name).settings, name if recipe is None else recipe
    content = read_yaml(recipe, "studies", ", ".join(list(kind.model_fields)[:2]))
    for change in changes:
        key, value = assignment(change, "`changes`", "seeds=[1]")
        *sections, last = key.split(".")
        section_at(content, sections, f"`changes` {key}")[last] = value
    if seeds is not None:
        content["seeds"] = list(seeds)
    return parse(kind, content, f"{recipe}")


def reproduce(
    name: str, settings: StudySettings, out: str | os.PathLike[str], *, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs the missing steps of an experiment, and summarizes all steps.

    Args:
        name: Name of the experiment.
        settings: All settings, see `read_study`.
        out: A new directory, or one with the same settings.
        progress: Shows the progress.

    Returns:
        The content of result.json: ``schema_version``, ``study``, ``settings``, ``machine``, ``versions``, ``seconds``
        (total of all steps, including those of earlier runs), and the result of the experiment.

    Raises:
        UserError: The directory contains something else or has other settings, or the experiment fails.
    """
    study = find_study(name)
    resolved = settings.resolved()
    fixed = {key: value for key, value in resolved.items() if key not in settings.free}
    inputs = study.read(settings)
    with RunFolder(Path(out), {"study": name, **fixed, **inputs.identity}) as folder:
        steps = Steps(folder.path, Progress() if progress is None else progress)
        try:
            found = study.run(settings, steps, inputs.content)
            result = {
                "schema_version": SCHEMA_VERSION,
                "study": name,
                "settings": resolved,
                "machine": machine(),
                "versions": versions(),
                "seconds": round(sum(steps.seconds().values()), 1),
                **found,
            }
            write_json(folder.path / "result.json", result)
        except OSError as error:
            raise cannot_write(folder.path, error, resumes=True) from error
    return result


def identities(models: Iterable[str], dtype: str) -> dict[str, Any]:
    """Returns the identities of models by name, for `Inputs.identity`; None if unknown before they are loaded."""
    from longlens.models import identify
    from longlens.settings.options import Loading

    found = {name: identify(name, Loading(dtype=dtype)) for name in models}
    return {name: None if one is None else one.to_json() for name, one in found.items()}


def machine() -> str:
    """Returns cores, processor and GPU of this machine, for tables of results."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {gpu}"
