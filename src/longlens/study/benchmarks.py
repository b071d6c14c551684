"""Reads benchmark scores of scored models from benchmark runs, matched by model identity, and from CSV files.

::

    model,family,LongBench,RULER
    smollm2,SmolLM2,21.3,40.1

A file has one row per model, which is matched by name; ``family`` is optional, and an empty cell is a missing score.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longlens.errors import UserError, shown
from longlens.runs.identity import ModelIdentity, model_differences
from longlens.scoring.scores import Scores, identity_of, names_of
from longlens.study.correlation import BenchmarkScores

MODEL, FAMILY = "model", "family"
"""Columns of a file that are not scores."""
LOGPROB = " answer log-probability"
"""Mean log-probability of the right answer, nats: reported for forced answers in addition to the score; no floor."""


class ScoreFile(NamedTuple):
    """The content of a CSV file.

    Attributes:
        scores: Scores of each benchmark, by model.
        families: Family of each model, by its name; empty if there is no such column.
        models: All models of the file.
    """

    scores: dict[str, dict[str, float]]
    families: dict[str, str]
    models: list[str]


def join_benchmarks(
    sources: Sequence[str | os.PathLike[str]], runs: Sequence[Scores], names: Sequence[str] | None = None
) -> BenchmarkScores:
    """Returns the benchmark scores of scored models.

    A benchmark run is matched to a run of the same model: same weights, configuration, tokenizer and cache policy, with
    any dtype and engine. If one of them recorded no identity, as with a server, they are matched by the model's name,
    and a note reports it. A row of a file is matched by name.

    A benchmark is a task at a length, such as ``niah_single_1 4096``, with its mode unless answers were generated, and
    its settings if runs differ in them. Answers that were forced also have the mean log-probability of the answers,
    which has no floor. Other benchmarks are an average of a suite, such as ``RULER 4096 mean of 13``; and
    ``mean of N tasks``, over those tasks of a mode that every model has.

    Args:
        sources: Directories of benchmark runs, and CSV files.
        runs: The scored models.
        names: Names of the models; by default those of `names_of`.

    Raises:
        UserError: A source cannot be read; two sources have a score of the same benchmark and model; no source has a
            scored model.
    """
    names = names_of(runs) if names is None else names
    joined = _Joined()
    folders = []
    for source in map(Path, sources):
        if source.is_dir():
            folders.append(source)
        else:
            _add_file(joined, source, runs, names)
    _add_folders(joined, folders, runs, names)
    if not joined.scores:
        listed = ", ".join(map(shown, sources))
        raise UserError(
            f"no benchmark result in {listed} belongs to one of the scored models, {', '.join(map(shown, names))}: "
            + "; ".join([*joined.notes, "pass results of the same models"])
        )
    without = [name for name in names if not any(name in of_model for of_model in joined.scores.values())]
    if without:
        joined.notes.append(f"no benchmark results of {', '.join(without)}, which are excluded")
    return BenchmarkScores(scores=joined.scores, families=joined.families, notes=joined.notes)


def read_scores(path: str | os.PathLike[str]) -> ScoreFile:
    """Reads scores of models from a CSV file: a column ``model``, optionally ``family``, and one column per benchmark.

    Args:
        path: The file.

    Raises:
        UserError: The file or the required columns do not exist, a model occurs twice, or a cell is not a number.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path}: {error}. Expected CSV with the column model and one column per benchmark"
        ) from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    benchmarks = [name for name in header[1:] if name != FAMILY]
    if not benchmarks or header[0] != MODEL or len(set(header)) < len(header) or not all(header):
        raise UserError(f"{path} begins with {header}, expected a line such as model,LongBench,RULER")
    found = ScoreFile(scores={benchmark: {} for benchmark in benchmarks}, families={}, models=[])
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise UserError(f"{path}:{number}: {len(row)} cells, expected {len(header)} as in its first line")
        name = row[0].strip()
        if not name or name in found.models:
            raise UserError(f"{path}:{number}: " + (f"model {name!r} occurs twice" if name else "no model is named"))
        found.models.append(name)
        for column, cell in zip(header[1:], map(str.strip, row[1:]), strict=True):
            if cell and column == FAMILY:
                found.families[name] = cell
            elif cell:
                found.scores[column][name] = _score(path, number, cell)
    return found


def _score(path: Path, number: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError as error:
        raise UserError(f"{path}:{number}: {cell!r} is not a number") from error
    if not math.isfinite(value):
        raise UserError(f"{path}:{number}: {cell!r} is not a finite number; leave the cell empty if there is no value")
    return value


class _Joined:
    """Accumulates the scores and notes."""

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, float]] = {}
        self.families: dict[str, str] = {}
        self.notes: list[str] = []
        self._places: dict[tuple[str, str], Path] = {}

    def add(self, benchmark: str, name: str, score: float, place: Path) -> None:
        """Adds one score of a run.

        Raises:
            UserError: There is already a score of this benchmark and run.
        """
        other = self._places.setdefault((benchmark, name), place)
        if name in self.scores.get(benchmark, {}):
            raise UserError(f"{other} and {place} both have {benchmark!r} of {name}: pass only one of them")
        self.scores.setdefault(benchmark, {})[name] = score


def _add_file(joined: _Joined, path: Path, runs: Sequence[Scores], names: Sequence[str]) -> None:
    found = read_scores(path)
    # A file may identify models as they were passed, or by their names in tables.
    given = [str(run.manifest["model"]["name"]) for run in runs]
    called = {model: name for model, name in zip(given, names, strict=True) if given.count(model) == 1}
    called |= {name: name for name in names}
    for benchmark, scores in found.scores.items():
        for model, score in scores.items():
            if model in called:
                joined.add(benchmark, called[model], score, path)
    joined.families |= {called[model]: family for model, family in found.families.items() if model in called}
    if unknown := [model for model in found.models if model not in called]:
        listed = ", ".join(map(repr, unknown[:4])) + (", …" if len(unknown) > 4 else "")
        joined.notes.append(
            f"{path}: {len(unknown)} of its {len(found.models)} models are not among the scored models ({listed})"
        )


class _Cell(NamedTuple):
    """The score of a model in one task."""

    name: str
    task: str
    length: int | None
    mode: str
    settings: Mapping[str, Any]
    score: float
    asked: str
    folder: Path


def _add_folders(joined: _Joined, folders: Sequence[Path], runs: Sequence[Scores], names: Sequence[str]) -> None:
    from longlens.bench.results import summarize_run
    from longlens.bench.store import read_manifest
    from longlens.bench.table import batch_notes, suite_parts

    cells: list[_Cell] = []
    for folder in folders:
        manifest = read_manifest(folder)
        own = _runs_of(joined, folder, manifest, runs, names)
        if not own:
            continue
        results = summarize_run(folder)
        mode = "" if results["mode"] == "generate" else f" ({results['mode']})"
        for batch in results["tasks"].values():
            length = batch["length"]
            known = batch_notes(batch, "" if length is None else f"{length:,}")
            joined.notes += (f"{own[0]}: {note}" for note in known)
            made = batch["made_of"]
            asked = json.dumps([made, batch["seed"], batch["num_samples"]], sort_keys=True)
            nll = batch["answer_nll"]
            for part, score in (("", batch["score"]), (LOGPROB, None if nll is None else -nll)):
                if score is not None:
                    about = (batch["task"], length, part + mode, made.get("settings") or {}, score, asked, folder)
                    cells += (_Cell(name, *about) for name in own)
        for benchmark, score in _averages(results, suite_parts(results["suites"])):
            for name in own:
                joined.add(benchmark, name, score, folder)
    for benchmark, of_models in _tasks(joined, cells).items():
        for cell in of_models:
            joined.add(benchmark, cell.name, cell.score, cell.folder)


def _runs_of(
    joined: _Joined, folder: Path, manifest: Mapping[str, Any], runs: Sequence[Scores], names: Sequence[str]
) -> list[str]:
    """Returns the runs of the same model as a benchmark run; mismatches are added to the notes."""
    engine = manifest.get("engine")
    record: Mapping[str, Any] = engine if isinstance(engine, Mapping) else {}
    identity, model = ModelIdentity.read(record), str(manifest["model"])
    named = [(name, run) for name, run in zip(names, runs, strict=True) if str(run.manifest["model"]["name"]) == model]
    same = [name for name, run in zip(names, runs, strict=True) if identity_of(run).is_same_model(identity)]
    if same:
        return same
    for name, run in named:
        if identity.sha256 is None or identity_of(run).sha256 is None:
            joined.notes.append(f"{folder} and {name} are matched by model name: one of them recorded no identity")
            return [name]
    how = ""
    if named:
        differ = model_differences(record, named[0][1].manifest["model"])
        how = f" (of the run of that name: {'; '.join(differ)})"
    joined.notes.append(f"{folder}: its model {shown(model)} is not among the scored models{how}")
    return []


def _averages(
    results: Mapping[str, Any], parts: Iterable[tuple[str, str, Mapping[str, float | None], Sequence[str]]]
) -> Iterable[tuple[str, float]]:
    """Adds complete averages of suites, and scores of lm-evaluation-harness."""
    for suite, place, averages, _ in parts:
        for what, average in averages.items():
            if average is not None:
                yield " ".join(word for word in (suite, place.replace(",", ""), what) if word), float(average)
    for harness in results["harness"].values():
        for task, metrics in harness["results"].items():
            for metric, value in metrics.items():
                if value["score"] is not None:
                    yield " ".join(word for word in (task, harness["length"] or "", metric) if word), value["score"]


def _tasks(joined: _Joined, cells: Sequence[_Cell]) -> dict[str, list[_Cell]]:
    """Returns cells by benchmark: the same task, length, mode and settings; several seeds of a run are averaged."""
    groups: dict[tuple[str, int | None, str], list[_Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task, cell.length, cell.mode), []).append(cell)
    found: dict[str, list[_Cell]] = {}
    for (task, length, mode), group in groups.items():
        keys = dict.fromkeys(key for cell in group for key in cell.settings)
        differ = [key for key in keys if len({json.dumps(cell.settings.get(key)) for cell in group}) > 1]
        for cell in group:
            chosen = [f"{key}={cell.settings[key]}" for key in differ if key in cell.settings]
            words = [task, *([] if length is None else [str(length)]), *chosen]
            found.setdefault(" ".join(words) + mode, []).append(cell)
    for benchmark, group in found.items():
        asked = {cell.asked for cell in group}
        if len(asked) > 1:
            joined.notes.append(f"{benchmark}: models have different samples (seed, number, text or settings differ)")
        merged: dict[tuple[str, Path], list[_Cell]] = {}
        for cell in group:
            merged.setdefault((cell.name, cell.folder), []).append(cell)
        found[benchmark] = [
            same[0]._replace(score=sum(cell.score for cell in same) / len(same)) for same in merged.values()
        ]
    return found | _means_of_tasks(found)


def _means_of_tasks(found: Mapping[str, Sequence[_Cell]]) -> dict[str, list[_Cell]]:
    """Returns, for each mode, the mean of the tasks that every model has, if there are at least two."""
    means: dict[str, list[_Cell]] = {}
    for mode in dict.fromkeys(group[0].mode for group in found.values()):
        groups = [group for group in found.values() if group[0].mode == mode]
        names = dict.fromkeys(cell.name for group in groups for cell in group)
        shared = [group for group in groups if {cell.name for cell in group} == names.keys()]
        if len(shared) < 2:
            continue
        for name in names if LOGPROB not in mode else ():
            own = [next(cell for cell in group if cell.name == name) for group in shared]
            mean = own[0]._replace(score=sum(cell.score for cell in own) / len(own))
            means.setdefault(f"mean of {len(shared)} tasks{mode}", []).append(mean)
    return means
