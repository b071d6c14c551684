"""Tables of ``longlens study reproduce NAME -o FOLDER``, and its result.json, for docs.

python -m benchmarks.study NAME FOLDER [SEEDS]      (what is missing in the folder is run; SEEDS such as 1,2,3,4)
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.tables import ROOT, fill_block, markdown
from longlens.cli.progress import ProgressBar
from longlens.files import write_json
from longlens.report.charts import Axis, Chart, Series
from longlens.report.figures import write_figures
from longlens.study.reproduce import find_study, read_study, reproduce

PAGE = "docs/study.md"
SHOWN = {"ce": "CE", "longce": "LongCE", "floored": "LongCE, floor 1", "longce K=16 d=16": "LongCE, K = d = 16"}
"""Arms of the longce experiment in its figures."""


def main(name: str, out: str, seeds: str = "") -> None:
    """Runs what is missing, and writes benchmarks/results/study_NAME.json and .md and the block of the page."""
    chosen = [int(seed) for seed in seeds.split(",")] if seeds else None
    result = reproduce(name, read_study(name, seeds=chosen), out, progress=ProgressBar())
    text = render(name, result)
    print(text)
    results = ROOT / "benchmarks" / "results"
    write_json(results / f"study_{name}.json", result)
    (results / f"study_{name}.md").write_text(text, encoding="utf-8")
    fill_block(PAGE, f"study_{name}", text)
    if name == "longce":
        write_figures(list(over_time(result)), ROOT / "docs" / "figures", formats=("svg",))


def over_time(result: Mapping[str, Any]) -> Iterator[Chart]:
    """Charts of the longce experiment like the paper's figure 7, one per extension: answer NLL over training time."""
    for method, timing in result["timing"].items():
        rows = [row for row in result["means"] if row["method"] == method]
        start = [row for row in rows if row["step"] == 0]
        series = []
        for color, (arm, title) in enumerate(SHOWN.items()):
            points = [row for row in rows if row["arm"] == arm]
            if not points:
                continue
            points = sorted([*start, *points], key=lambda row: row["seconds"])
            found = [row["metrics"]["trained.answer_nll"] for row in points]
            series.append(
                Series(
                    name=title,
                    x=[row["seconds"] / timing["longce"]["ce_seconds"] for row in points],
                    y=[one["mean"] for one in found],
                    low=[one["low"] for one in found],
                    high=[one["high"] for one in found],
                    color=color,
                )
            )
        yield Chart(
            name=f"longce-time-{method}",
            title=f"Training after extension by {method.upper()}: {len(result['seeds'])} seeds, 95 % intervals",
            caption="",
            x=Axis(label="Wall-clock time, in steps of CE"),
            y=Axis(label="Answer NLL, nats"),
            series=series,
        )


def render(name: str, result: Mapping[str, Any]) -> str:
    """The tables of a result as Markdown."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    versions = ", ".join(f"{package} {result['versions'][package]}" for package in ("torch", "transformers"))
    own, seeds = read_study(name).seeds, result["settings"]["seeds"]
    listed = "" if list(own) == seeds else ",".join(map(str, seeds))
    flag, argument = (f" --seeds {listed}", f" {listed}") if listed else ("", "")
    head = (
        f"Made on {today} with `longlens study reproduce {name} -o {name}{flag}` and `python -m benchmarks.study "
        f"{name} {name}{argument}`: {result['machine']}, {versions}; {result['seconds'] / 60:.0f} minutes in all."
    )
    tables = find_study(name).tables(result)
    return (
        "\n\n".join([head, *(f"{t.title}\n\n{markdown(t.columns, t.rows, left=t.left)}".rstrip() for t in tables)])
        + "\n"
    )


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit("usage: python -m benchmarks.study NAME FOLDER [SEEDS]")
    main(*sys.argv[1:])
