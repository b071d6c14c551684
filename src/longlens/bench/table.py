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
    labels = _labels(results)
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    notes: dict[str, None] = {}
    for name, result in results.items():
        for batch in result["tasks"].values():
            length = "" if batch["length"] is None else f"{batch['length']:,}"
            bound = ">= " if batch["is_lower_bound"] else ""
            cells.setdefault((batch["task"], length, batch["metric"]), {})[name] = _cell(batch, bound)
            for part in batch["depths"] if by_depth else ():
                place = f"{length} depth {_span(part)}"
                cells.setdefault((batch["task"], place, batch["metric"]), {})[name] = _cell(part, bound)
            notes |= dict.fromkeys(f"{labels[name]}: {note}" for note in _notes(batch))
        for harness in result["harness"].values():
            for key, value in _harness(harness).items():
                cells.setdefault(key, {})[name] = _number(value["score"], value["interval"])
        for key, score in _suite_rows(result["suites"]).items():
            cells.setdefault(key, {})[name] = "-" if score is None else f"{score:.2f}"
        notes |= dict.fromkeys(f"{labels[name]}: {note}" for note in _gaps(result["suites"]))
    # Averages that no run has are left out; what they lack is in the notes.
    known = {key: found for key, found in cells.items() if any(cell != "-" for cell in found.values())}
    rows = [[*key, *(found.get(name, "-") for name in results)] for key, found in known.items()]
    return Table(columns=["task", "length", "metric", *labels.values()], rows=rows, notes=list(notes))


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


def _notes(batch: Mapping[str, Any]) -> list[str]:
    place = batch["task"] if batch["length"] is None else f"{batch['task']} at {batch['length']:,}"
    counts = {
        "num_missing": "samples have no answer yet",
        "num_skipped": "samples were too long and are not counted",
        "num_cut": "samples were shortened",
        "num_truncated_answers": "answers ended for their number of tokens",
    }
    told = [f"{place}: {batch[key]} {what}" for key, what in counts.items() if batch[key]]
    if batch["num_scored"] != batch["num_samples"]:
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
        shown = f"{int(length):,}" if int(length) else ""
        rows |= {("HELMET", shown, category): score for category, score in found["categories"].items()}
        rows[("HELMET", shown, "overall")] = found["overall"]
    if "longbench" in suites:
        for part, domains in suites["longbench"]["domains"].items():
            rows |= {("LongBench", part, domain): score for domain, score in domains.items()}
            rows[("LongBench", part, "overall")] = suites["longbench"]["overall"][part]
    for bucket, found in suites.get("longbench_e", {}).items():
        rows[("LongBench-E", bucket, "overall")] = found["overall"]["en"]
    for name, groups in suites.get("longbench_v2", {}).items():
        rows |= {("LongBench v2", group, name): score for group, score in groups.items()}
    return rows


def _gaps(suites: Mapping[str, Any]) -> list[str]:
    told = []
    if "ruler" in suites:
        told += [f"RULER at {length}: no {', '.join(tasks)}" for length, tasks in suites["ruler"]["gaps"].items()]
    for length, found in suites.get("helmet", {}).items():
        told += [f"HELMET at {length}: no {', '.join(found['gaps'])}"] if found["gaps"] else []
    if suites.get("longbench", {}).get("gaps"):
        told.append(f"LongBench: no {', '.join(suites['longbench']['gaps'])}")
    for bucket, found in suites.get("longbench_e", {}).items():
        told += [f"LongBench-E, {bucket}: no {', '.join(found['gaps'])}"] if found["gaps"] else []
    return told


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
