"""Generates the example of ``longlens study ablate`` in docs/study.md: scores four models, and writes the ablation.

python -m benchmarks.ablation FOLDER      (runs only what is missing in the folder)
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

from benchmarks.tables import ROOT, fill_block, machine, markdown
from longlens.files import write_json
from longlens.scoring.reader import open_scores
from longlens.study.ablation import Ablation, ablate
from longlens.study.ablation_tables import tables

NAME = "study_ablation"
PAGE = "docs/study.md"
MODULES = "argparse calendar configparser difflib heapq inspect optparse pdb pprint shlex tarfile textwrap"
EXTENDED = {"smollm2-pi4": "pi", "smollm2-ntk4": "ntk"}
CONTEXTS = {"smollm2": "128,256", "gemma3-270m": "128", "smollm2-pi4": "128", "smollm2-ntk4": "128"}
EVALUATORS = ("gemma3-270m", "smollm2")


def main(out: Path) -> None:
    """Scores what is missing, and writes both result files and the block of the page."""
    out.mkdir(exist_ok=True)
    for name, method in EXTENDED.items():
        if not (out / name).exists():
            _longlens("extend", "smollm2", "--method", method, "--factor", "4", "-o", str(out / name))
    documents = [f"stdlib:{module}" for module in MODULES.split()]
    for name, context in CONTEXTS.items():
        model = str(out / name) if name in EXTENDED else name
        settings = ["--max-length", "1024", "--truncate-with", "smollm2", "--context", context, "--stride", "64"]
        _longlens("score", *documents, "--model", model, *settings, "-o", str(out / "scores" / name))
    runs = {name: open_scores(out / "scores" / name) for name in CONTEXTS}
    found = ablate(list(runs.values()), [runs[name] for name in EVALUATORS])
    text = render(found)
    print(text)
    results = ROOT / "benchmarks" / "results"
    write_json(results / f"{NAME}.json", found.to_json())
    (results / f"{NAME}.md").write_text(text, encoding="utf-8")
    fill_block(PAGE, NAME, text)


def render(found: Ablation) -> str:
    """The tables as Markdown; of the grids that of the first evaluator."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    parts = [f"Made on {today} with `python -m benchmarks.ablation FOLDER`: {machine()}, float32, 12 documents."]
    grids = 0
    for table in tables(found):
        grids += table.title.startswith("Thresholds")
        if grids <= 1 or not table.title.startswith("Thresholds"):
            parts.append(f"{table.title}:\n\n{markdown(table.columns, table.rows, left=table.left)}".rstrip())
    return "\n\n".join(parts) + "\n"


def _longlens(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "longlens", *arguments], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.ablation FOLDER")
    main(Path(sys.argv[1]))
