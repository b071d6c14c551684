"""Measures startup time: imports, help, and small commands, each in a new process.

    python -m benchmarks.startup [rounds]       (three minutes; five rounds, the commands take turns)

Seconds of the clock and of the CPU, medians over rounds with the range; the first round, which fills the caches of the
disk, is not counted. SmolLM2 is a .gguf file, of which longlens keeps what it read in the user's cache: an empty one
here in one of the two rows.
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

FIRST, SECOND = (f"`longlens score` of a line with SmolLM2, {start} start" for start in ("first", "second"))
LONGLENS = [sys.executable, "-m", "longlens"]


def seconds(command: list[str], folder: str, cache: str) -> tuple[float, float]:
    """Returns seconds of wall-clock and CPU time, children included."""
    new = tempfile.mkdtemp(dir=folder)
    command = [part.format(new=new) for part in command]
    environment = os.environ | {"XDG_CACHE_HOME": cache.format(new=new)} if cache else None
    before, start = os.times(), time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    clock, after = time.monotonic() - start, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return clock, cpu


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        scores = str(Path(folder, "scores"))
        longlens.score(documents(4), RandomScorer(), context=CONTEXT, stride=STRIDE, out=scores)
        line = Path(folder, "line.txt")
        line.write_text("In 1998 the old lighthouse still burned oil.")
        one = [*LONGLENS, "score", str(line), "--model", "smollm2", "--long-only", "--out", "{new}/run"]
        caches = {FIRST: "{new}", SECOND: folder}
        commands = {
            "`python -c pass`": [sys.executable, "-c", "pass"],
            "`import longlens`": [sys.executable, "-c", "import longlens"],
            "`longlens --help`": [*LONGLENS, "--help"],
            "`longlens score --help`": [*LONGLENS, "score", "--help"],
            "`longlens bench list`": [*LONGLENS, "bench", "list"],
            "`longlens perplexity` of 4 documents": [*LONGLENS, "perplexity", scores],
            "`import torch, transformers`": [sys.executable, "-c", "import torch, transformers"],
            FIRST: one,
            SECOND: one,
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                measured = seconds(command, folder, caches.get(name, ""))
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
