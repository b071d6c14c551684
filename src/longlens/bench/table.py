"""A table across runs: what each model scores at each task and length."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlens.errors import UserError

FORMATS = ("text", "markdown", "csv")
MANY = 8
"""Models that have a column each."""
_KEYS = ("task", "length", "metric")
# README of NVIDIA/RULER, the columns of its table
RULER_AVERAGES = {"average": "Avg.", "weighted_increasing": "wAvg. (inc)", "weighted_decreasing": "wAvg. (dec)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of text.

    Attributes:
        columns: Their names: task, length, metric, then a column a run.
        rows: Cells; ``-`` where a run has no such number.
        notes: What has to be known of the numbers.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def readable(self) -> Table:
        """The same table, with a row for each model where there are more of them than `MANY`."""
        if len(self.columns) - len(_KEYS) <= MANY:
            return self
        models = self.columns[len(_KEYS) :]
        rows = [
            [*row[: len(_KEYS)], model, cell]
            for row in self.rows
            for model, cell in zip(models, row[len(_KEYS) :], strict=True)
            if cell != "-"
        ]
        return Table(columns=[*_KEYS, "model", "score"], rows=rows, notes=self.notes)

    def markdown(self) -> str:
        """A Markdown table, with the notes below it."""
        lines = [_markdown(self.columns), _markdown(["---"] * len(self.columns)), *map(_markdown, self.rows)]
        return "\n".join(lines + [f"\n{note}" for note in self.notes]) + "\n"

    def csv(self) -> str:
        """Comma-separated values, without the notes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()


def results_table(results: Mapping[str, Mapping[str, Any]], *, by_depth: bool = False) -> Table:
    """Runs side by side.

    Args:
        results: Name of a run -> what `longlens.bench.summary.summarise_run` says of it.
        by_depth: Whether a task's rows are followed by those of the parts of the text.

    Raises:
        UserError: There is no run.
    """
    if not results:
        raise UserError("no runs to put into a table: give folders of longlens bench run")
    labels, lengths = _labels(results), _lengths(results)
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    notes: dict[str, None] = {}
    for name, result in results.items():
        for key, batch in result["tasks"].items():
            length = lengths[key]
            bound = ">= " if batch["is_lower_bound"] else ""
            cells.setdefault((batch["task"], length, batch["metric"]), {})[name] = _cell(batch, bound)
            for part in batch["depths"] if by_depth else ():
                place = f"{length} depth {_span(part)}".lstrip()
                cells.setdefault((batch["task"], place, batch["metric"]), {})[name] = _cell(part, bound)
            notes |= dict.fromkeys(f"{labels[name]}: {note}" for note in _notes(batch, length))
        for harness in result["harness"].values():
            for key, value in _harness(harness).items():
                cells.setdefault(key, {})[name] = _number(value["score"], value["interval"])
        for key, score in _suite_rows(result["suites"]).items():
            shown = f"{score:,}" if isinstance(score, int) else f"{score:.2f}" if score is not None else "-"
            cells.setdefault(key, {})[name] = shown
        notes |= dict.fromkeys(f"{labels[name]}: {note}" for note in _gaps(result["suites"]))
    # Averages that no run has are left out; what they lack is in the notes.
    known = {key: found for key, found in cells.items() if any(cell != "-" for cell in found.values())}
    rows = [[*key, *(found.get(name, "-") for name in results)] for key, found in known.items()]
    return Table(columns=[*_KEYS, *labels.values()], rows=rows, notes=list(notes))


def _lengths(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The length of each batch; with its seed, or as its samples are named, where a run has several of that length."""
    lengths: dict[str, str] = {}
    twice: set[str] = set()
    for result in results.values():
        seen: dict[tuple[str, Any], list[str]] = {}
        for key, batch in result["tasks"].items():
            lengths[key] = "" if batch["length"] is None else f"{batch['length']:,}"
            seen.setdefault((batch["task"], batch["length"]), []).append(key)
        twice |= {key for keys in seen.values() if len(keys) > 1 for key in keys}
        names = {key: key.removeprefix(f"{batch['task']}-") for key, batch in result["tasks"].items()}
        lengths |= {key: name for key, name in names.items() if key in twice}
    return lengths


def _labels(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Models, and the run's folder as well where two runs are of one model."""
    models = {name: Path(str(result["model"])).name for name, result in results.items()}
    mode = {name: "" if result["mode"] == "generate" else f" ({result['mode']})" for name, result in results.items()}
    labels = {name: models[name] + mode[name] for name in results}
    twice = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    return {name: f"{label} in {name}" if label in twice else label for name, label in labels.items()}


def _cell(batch: Mapping[str, Any], bound: str = "") -> str:
    return bound + _number(batch["score"], batch["interval"])


def _number(score: float | None, interval: Sequence[float] | None) -> str:
    if score is None:
        return "-"
    return f"{score:.1f}" + ("" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]")


def _span(part: Mapping[str, Any]) -> str:
    return f"{part['from']:g}" if part["from"] == part["to"] else f"{part['from']:g}-{part['to']:g}"


def _notes(batch: Mapping[str, Any], length: str) -> list[str]:
    place = f"{batch['task']} at {length}" if length else batch["task"]
    counts = {
        "num_missing": "samples have no answer yet",
        "num_skipped": "samples were too long and are not counted",
        "num_cut": "samples were shortened",
        "num_truncated_answers": "answers ended for their number of tokens",
    }
    told = [f"{place}: {batch[key]} {what}" for key, what in counts.items() if batch[key]]
    if batch.get("needs_judge"):
        told.append(f"{place}: the score is a judge's: longlens bench grade RUN --judge MODEL")
    elif batch["num_scored"] != batch["num_samples"]:
        told.append(f"{place}: {batch['metric']} is of {batch['num_scored']} of {batch['num_samples']} samples")
    judges = [one for one in batch.get("judged_by", ()) if one["prompts"] is not None]
    return told + [f"{place}: judged by {one['by']}, whose prompts are {one['prompts']}" for one in judges]


def _harness(result: Mapping[str, Any]) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {
        (task, result["length"] or "", metric): value
        for task, metrics in result["results"].items()
        for metric, value in metrics.items()
    }


def _suite_rows(suites: Mapping[str, Any]) -> dict[tuple[str, str, str], float | None]:
    rows: dict[tuple[str, str, str], float | None] = {}
    if "ruler" in suites:
        found = suites["ruler"]
        rows |= {("RULER", f"{int(length):,}", "mean of 13"): mean for length, mean in found["means"].items()}
        for key, name in RULER_AVERAGES.items():
            rows[("RULER", "all", name)] = found[key]
        rows[("RULER", "all", f"effective length (> {found['threshold']:g})")] = found["effective_length"]
    for length, found in suites.get("helmet", {}).items():
        rows |= {("HELMET", _at(length), category): score for category, score in found["categories"].items()}
        rows[("HELMET", _at(length), "overall")] = found["overall"]
    for length, found in suites.get("longbench", {}).items():
        for part, domains in found["domains"].items():
            rows |= {("LongBench", _at(length, part), domain): score for domain, score in domains.items()}
            rows[("LongBench", _at(length, part), "overall")] = found["overall"][part]
    for length, buckets in suites.get("longbench_e", {}).items():
        for bucket, found in buckets.items():
            rows[("LongBench-E", _at(length, bucket), "overall")] = found["overall"]["en"]
    for length, numbers in suites.get("longbench_v2", {}).items():
        for name, groups in numbers.items():
            rows |= {("LongBench v2", _at(length, group), name): score for group, score in groups.items()}
    return rows


def _at(length: str, part: str = "") -> str:
    """A length, which may be none, and a part of what is asked at it."""
    return " ".join(word for word in (f"{int(length):,}" if int(length) else "", part) if word)


def _gaps(suites: Mapping[str, Any]) -> list[str]:
    told = []
    if "ruler" in suites:
        told += [f"RULER at {length}: no {', '.join(tasks)}" for length, tasks in suites["ruler"]["gaps"].items()]
    lacking = {("HELMET", length, ""): found["gaps"] for length, found in suites.get("helmet", {}).items()}
    lacking |= {("LongBench", length, ""): found["gaps"] for length, found in suites.get("longbench", {}).items()}
    for length, buckets in suites.get("longbench_e", {}).items():
        lacking |= {("LongBench-E", length, bucket): found["gaps"] for bucket, found in buckets.items()}
    for (name, length, part), gaps in lacking.items():
        if gaps:
            told.append(f"{name}{' at ' if int(length) or part else ''}{_at(length, part)}: no {', '.join(gaps)}")
    return told


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
