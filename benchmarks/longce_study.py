"""Does LongCE help a small model? Runs the shipped study, or what is missing of it, and writes its tables.

    python -m benchmarks.longce_study longce-study

The folder is the one of ``longlens study reproduce longce -o longce-study``.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.tables import ROOT, fill_block, machine
from longlens.cli.progress import ProgressBar
from longlens.files import write_json
from longlens.study.documents import read_text
from longlens.study.longce import reproduce_longce
from longlens.study.settings import read_study
from longlens.study.summary import difference_table, mean_table

NAME = "longce_study"
PAGE = "docs/study.md"


def main(out: str) -> None:
    """Runs the study in a folder and writes both files of results and the page."""
    result = reproduce_longce(read_study("longce"), out, text=read_text(None), progress=ProgressBar())
    text = render(result)
    print(text)
    results = ROOT / "benchmarks" / "results"
    write_json(results / f"{NAME}.json", result)
    (results / f"{NAME}.md").write_text(text, encoding="utf-8")
    fill_block(PAGE, NAME, text)


def render(result: dict[str, Any]) -> str:
    """The tables of a result as Markdown."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    base, seeds = result["base"], ", ".join(map(str, result["seeds"]))
    ratios = ", ".join(f"{name} {found['ratio']:.2f}" for name, found in result["timing"].items())
    evaluator = result["evaluator"]["test"]
    weights = [
        (
            row["method"],
            row["arm"],
            f"{row['mean']:.3f}",
            f"{row['mean_of_answers']:.2f}",
            f"{100 * row['share_of_answers']:.2f}",
        )
        for row in result["weights"]
    ]
    parts = [
        f"Measured on {today} with `python -m benchmarks.{NAME} longce-study`: {machine()}.",
        f"Text: {result['text']['name']}, SHA-256 of its words `{result['text']['sha256'][:16]}…`. "
        f"Base model: {base['parameters']:,} parameters; at its own length {100 * base['accuracy']:.1f} % of answers "
        f"right (answer NLL {base['answer_nll']:.3f}). Evaluator: {100 * evaluator['accuracy']:.1f} % right, "
        f"{evaluator['num_key_tokens']} key tokens, {evaluator['num_key_answers']} of them asked-for answers. "
        f"A step of LongCE takes so many times as long as one of CE: {ratios}.",
        f"Means over the seeds {seeds}, ± half of a 95 % t-interval:",
        _markdown(*mean_table(result), left=2),
        "An arm minus CE of the same seed (± likewise), at equal steps and at equal time:",
        _markdown(*difference_table(result), left=2),
        "Weights in training:",
        _markdown(
            ("extension", "loss", "mean weight", "mean weight of answers", "answers' share of all weight, %"),
            weights,
            left=2,
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rule, *rows))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.longce_study FOLDER")
    main(sys.argv[1])
