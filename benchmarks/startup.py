"""How long it takes until something happens: imports, help, and small commands, each in a new process.

    python -m benchmarks.startup [rounds]       (a minute; five rounds, the commands take turns)

Seconds of the clock and of the CPU, medians over rounds with the range; the first round, which fills the caches of the
disk, is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import longlens
from benchmarks.scaling import CONTEXT, STRIDE, RandomScorer, documents
from benchmarks.tables import write_table

LONGLENS = [sys.executable, "-m", "longlens"]


def seconds(command: list[str]) -> tuple[float, float]:
    """Of the clock and of the CPU, children included."""
    before, start = os.times(), time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    clock, after = time.monotonic() - start, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return clock, cpu


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        scores = str(Path(folder, "scores"))
        longlens.score(documents(4), RandomScorer(), context=CONTEXT, stride=STRIDE, out=scores)
        commands = {
            "`python -c pass`": [sys.executable, "-c", "pass"],
            "`import longlens`": [sys.executable, "-c", "import longlens"],
            "`longlens --help`": [*LONGLENS, "--help"],
            "`longlens score --help`": [*LONGLENS, "score", "--help"],
            "`longlens bench list`": [*LONGLENS, "bench", "list"],
            "`longlens perplexity` of 4 documents": [*LONGLENS, "perplexity", scores],
            "`import torch, transformers`": [sys.executable, "-c", "import torch, transformers"],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                measured = seconds(command)
                if number:
                    found[name].append(measured)
    rows = []
    for name, runs in found.items():
        cells = []
        for values in zip(*runs, strict=True):
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        rows.append([name, *cells])
    write_table("startup", ["process", "s", "CPU s"], rows, page="docs/scale.md")


if __name__ == "__main__":
    main()
