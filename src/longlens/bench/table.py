"""Creates tables and heatmaps across runs: the scores of each model at each task and length."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlens.errors import UserError

if TYPE_CHECKING:
    from longlens.report.charts import Chart

FORMATS = ("text", "markdown", "csv")
MANY = 8
"""Maximum number of models that have their own column."""
GRID = "niah_grid"
_KEYS = ("task", "length", "metric")
# Columns of the table in the README of NVIDIA/RULER
RULER_AVERAGES = {"average": "Avg.", "weighted_increasing": "wAvg. (inc)", "weighted_decreasing": "wAvg. (dec)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of text.

    Attributes:
        columns: Column titles: task, length, metric, ``chance`` if a run is of mode choice, then one column per run.
        rows: Cells; ``-`` if a run has no such number.
        notes: Caveats about the numbers.
        num_keys: Number of columns before those of the runs.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    num_keys: int = len(_KEYS)

    def readable(self) -> Table:
        """Returns the same table, with one row per model instead if it has more than `MANY` models."""
        if len(self.columns) - self.num_keys <= MANY:
            return self
        keys, models = self.columns[: self.num_keys], self.columns[self.num_keys :]
        rows = [
            [*row[: self.num_keys], model, cell]
            for row in self.rows
            for model, cell in zip(models, row[self.num_keys :], strict=True)
            if cell != "-"
        ]
        return Table(columns=[*keys, "model", "score"], rows=rows, notes=self.notes, num_keys=self.num_keys)

    def markdown(self) -> str:
        """Returns a Markdown table, with the notes below it."""
        lines = [_markdown(self.columns), _markdown(["---"] * len(self.columns)), *map(_markdown, self.rows)]
        return "\n".join(lines + [f"\n{note}" for note in self.notes]) + "\n"

    def csv(self) -> str:
        """Returns comma-separated values, without the notes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()


def results_table(results: Mapping[str, Mapping[str, Any]], *, by_depth: bool = False) -> Table:
    """Creates a table with one column per run.

    Args:
        results: Name of a run -> result of `longlens.bench.results.summarize_run`.
        by_depth: Whether to add rows for needle depths after the rows of a task.

    Raises:
        UserError: No runs were passed.
    """
    if not results:
        raise UserError("no runs for the table: pass directories of longlens bench run")
    labels, lengths = _labels(results), _lengths(results)
    cells: dict[tuple[str, str, str, str], dict[str, str]] = {}
    notes: dict[str, None] = {}
    for name, result in results.items():
        if result["mode"] == "choice" and result.get("dtype") not in (None, "float32"):
            note = f"choices were compared in {result['dtype']}, whose rounding decides near ties: use `dtype=float32`"
            notes[f"{labels[name]}: {note}"] = None
        for key, batch in result["tasks"].items():
            length = lengths[key]
            bound = ">= " if batch["is_lower_bound"] else ""
            chance = "" if batch.get("chance") is None else f"{batch['chance']:.1f}"
            cells.setdefault((batch["task"], length, batch["metric"], chance), {})[name] = _cell(batch, bound)
            for part in batch["depths"] if by_depth else ():
                place = f"{length} depth {_span(part)}".lstrip()
                cells.setdefault((batch["task"], place, batch["metric"], chance), {})[name] = _cell(part, bound)
            notes |= dict.fromkeys(f"{labels[name]}: {note}" for note in batch_notes(batch, length))
        for harness in result["harness"].values():
            for task, metrics in harness["results"].items():
                for metric, value in metrics.items():
                    cells.setdefault((task, harness["length"] or "", metric, ""), {})[name] = _cell(value)
        for suite, place, scores, gaps in suite_parts(result["suites"]):
            for what, score in scores.items():
                shown = f"{score:,}" if isinstance(score, int) else f"{score:.2f}" if score is not None else "-"
                cells.setdefault((suite, place, what, ""), {})[name] = shown
            if gaps:
                notes[f"{labels[name]}: {suite}{' at ' if place else ''}{place}: no {', '.join(gaps)}"] = None
    # Averages that no run has are omitted; the notes list the missing tasks.
    known = {key: found for key, found in cells.items() if any(cell != "-" for cell in found.values())}
    keys = _KEYS if not any(chance for *_, chance in known) else (*_KEYS, "chance")
    rows = [[*key[: len(keys)], *(found.get(name, "-") for name in results)] for key, found in known.items()]
    return Table(columns=[*keys, *labels.values()], rows=rows, notes=list(notes), num_keys=len(keys))


def _lengths(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the length of each batch, with its seed or sample name if a run has several batches of that length."""
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


def model_name(result: Mapping[str, Any]) -> str:
    """Returns the display name of a run: the name that was set, else the last part of the model's path or id."""
    return str(result.get("name") or Path(str(result["model"])).name)


def _labels(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns model names, with the run directory if two runs are of the same model."""
    models = {name: model_name(result) for name, result in results.items()}
    mode = {name: "" if result["mode"] == "generate" else f" ({result['mode']})" for name, result in results.items()}
    labels = {name: models[name] + mode[name] for name in results}
    twice = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    return {name: f"{label} in {name}" if label in twice else label for name, label in labels.items()}


def _cell(batch: Mapping[str, Any], bound: str = "") -> str:
    score, interval = batch["score"], batch["interval"]
    if score is None:
        return f"{bound}-"
    return f"{bound}{score:.1f}" + ("" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]")


def _span(part: Mapping[str, Any]) -> str:
    return f"{part['from']:g}" if part["from"] == part["to"] else f"{part['from']:g}-{part['to']:g}"


def batch_notes(batch: Mapping[str, Any], length: str) -> list[str]:
    """Returns the caveats about a task's score.

    Args:
        batch: Result of `longlens.bench.results.summarize_batch`.
        length: Its displayed length; may be empty.
    """
    place = f"{batch['task']} at {length}" if length else batch["task"]
    counts = {
        "num_missing": "samples have no answer yet",
        "num_skipped": "samples were too long and are not counted",
        "num_cut": "samples were truncated",
        "num_truncated_answers": "answers reached the token limit",
    }
    notes = [f"{place}: {batch[key]} {what}" for key, what in counts.items() if batch[key]]
    if batch.get("needs_judge"):
        notes.append(f"{place}: the score needs a judge: longlens bench grade RUN --judge MODEL")
    elif batch["num_scored"] != batch["num_samples"]:
        notes.append(f"{place}: {batch['metric']} is over {batch['num_scored']} of {batch['num_samples']} samples")
    inside = batch.get("chance_in_text")
    if inside is not None and inside > batch["chance"]:
        notes.append(
            f"{place}: chance is {batch['chance']:.1f}, and {inside:.1f} among the choices that occur in the text"
        )
    judges = [one for one in batch.get("judged_by", ()) if one["prompts"] is not None]
    return notes + [f"{place}: judged by {one['by']}, whose prompts are {one['prompts']}" for one in judges]


def suite_parts(
    suites: Mapping[str, Any],
) -> Iterator[tuple[str, str, Mapping[str, float | None], Sequence[str]]]:
    """Yields suite, place, averages at this place, and the tasks that are missing for an average."""
    if "ruler" in suites:
        found = suites["ruler"]
        for length, mean in found["means"].items():
            yield "RULER", f"{int(length):,}", {"mean of 13": mean}, ()
        averages = {name: found[key] for key, name in RULER_AVERAGES.items()}
        averages[f"effective length (> {found['threshold']:g})"] = found["effective_length"]
        yield "RULER", "all", averages, ()
        for length, gaps in found["gaps"].items():
            yield "RULER", str(length), {}, gaps
    for length, found in suites.get("helmet", {}).items():
        yield "HELMET", _at(length), {**found["categories"], "overall": found["overall"]}, found["gaps"]
    for length, found in suites.get("longbench", {}).items():
        for part, domains in found["domains"].items():
            yield "LongBench", _at(length, part), {**domains, "overall": found["overall"][part]}, ()
        yield "LongBench", _at(length), {}, found["gaps"]
    for length, buckets in suites.get("longbench_e", {}).items():
        for bucket, found in buckets.items():
            yield "LongBench-E", _at(length, bucket), {"overall": found["overall"]["en"]}, found["gaps"]
    for length, numbers in suites.get("longbench_v2", {}).items():
        for name, groups in numbers.items():
            for group, score in groups.items():
                yield "LongBench v2", _at(length, group), {name: score}, ()


def _at(length: str, part: str = "") -> str:
    """Returns a length, if there is one, and a part of the tasks at this length."""
    return " ".join(word for word in (f"{int(length):,}" if int(length) else "", part) if word)


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def write_charts(results: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draws score against length for each task with several lengths, and a heatmap for each run with a needle grid.

    Args:
        results: Name of a run -> result of `longlens.bench.results.summarize_run`.
        folder: Output directory of the PNG and SVG files.

    Raises:
        UserError: No task has several lengths and no run has a needle grid, or matplotlib is not installed.
    """
    from longlens.report.figures import write_figures

    charts = length_charts(results)
    written = write_figures(charts, folder) if charts else []
    written += _write_heatmaps(results, folder)
    if not written:
        raise UserError(
            f"no chart to draw: run a task with several `lengths`, such as `lengths=[4096, 8192]`, or {GRID}"
        )
    return written


def length_charts(results: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """Returns charts of score against length, one per task and metric, with one series per run and the chance level.

    Scores of several seeds at one length are averaged, without an interval. RULER's mean has its own chart.

    Args:
        results: Name of a run -> result of `longlens.bench.results.summarize_run`.
    """
    from longlens.report.charts import Axis, Chart, Series

    labels = _labels(results)
    found: dict[tuple[str, str], dict[str, dict[int, list[Mapping[str, Any]]]]] = {}
    for run, result in results.items():
        for batch in result["tasks"].values():
            if batch["length"] is not None and batch["score"] is not None:
                of_run = found.setdefault((batch["task"], batch["metric"]), {}).setdefault(run, {})
                of_run.setdefault(batch["length"], []).append(batch)
        for length, mean in result["suites"].get("ruler", {}).get("means", {}).items():
            if mean is not None:
                of_run = found.setdefault(("RULER", "mean of 13 tasks"), {}).setdefault(run, {})
                of_run[int(length)] = [{"score": mean, "interval": None}]
    charts = []
    colors = {run: color for color, run in enumerate(results)}
    for (task, metric), by_run in found.items():
        lengths = sorted({length for of_run in by_run.values() for length in of_run})
        if len(lengths) < 2:
            continue
        series = []
        for run, of_run in by_run.items():
            places = sorted(of_run)
            alone = [of_run[length][0]["interval"] if len(of_run[length]) == 1 else None for length in places]
            series.append(
                Series(
                    name=labels[run],
                    x=places,
                    y=[sum(batch["score"] for batch in of_run[one]) / len(of_run[one]) for one in places],
                    low=[None if one is None else one[0] for one in alone],
                    high=[None if one is None else one[1] for one in alone],
                    color=colors[run],
                )
            )
        chance = {b["chance"] for of_run in by_run.values() for bs in of_run.values() for b in bs if b.get("chance")}
        if len(chance) == 1:
            series.append(
                Series(name="chance", x=lengths, y=[*chance] * len(lengths), color=len(colors), style="dashed")
            )
        charts.append(
            Chart(
                name=f"length-{re.sub(r'[^a-z0-9]+', '-', task.lower()).strip('-')}",
                title=f"{task}: {metric} by length",
                caption="Whiskers: 95 % intervals over samples.",
                x=Axis(label="length (tokens of prompt and answer)", log=True),
                y=Axis(label=f"{metric} (%)"),
                series=series,
            )
        )
    return charts


def _write_heatmaps(results: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draws a heatmap of each run that has a needle grid; returns no files if no run has one.

    Args:
        results: Name of a run -> result of `longlens.bench.results.summarize_run`.
        folder: Output directory.

    Raises:
        UserError: matplotlib is not installed.
    """
    from longlens.report.heatmap import write_heatmap

    written: list[Path] = []
    stems: list[str] = []
    for name, result in results.items():
        cells = [
            (batch["length"], part["from"], part["score"])
            for batch in result["tasks"].values()
            if batch["suite"] == GRID and batch["length"] is not None
            for part in batch["depths"]
        ]
        if cells:
            stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
            stems.append(stem)
            stem += f"-{stems.count(stem)}" if stems.count(stem) > 1 else ""
            title = f"{model_name(result)}, needle in a haystack"
            written += write_heatmap(cells, folder, name=f"heatmap-{stem}", title=title)
    return written
