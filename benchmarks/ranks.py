"""Compares documents per second of two torchrun processes with one, on documents of very unequal lengths.

    python -m benchmarks.ranks [rounds] [--model smollm2]
                                        (three rounds of SmolLM2: about ten minutes on two cores that nothing else uses)

SmolLM2 in float32, one thread a process, K = 256, d = 128; the page is written of that model alone. One process and
two take turns, each time in new processes. The clock begins when every process has loaded the model and scored a short
text, and stops when the last one has committed its scores; loading is measured apart. Ratios are medians over rounds,
of rounds. Other work on the machine moves them, and less so the CPU time of each process, from which the balance is:
the mean over the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import longlens
from benchmarks.tables import markdown, write_table
from longlens.models import load_encoder
from longlens.runs.sharing import forward_cost, windows_cost

TOKENS = (1100, 60, 80, 50, 600, 70, 40, 90, 350, 60, 50, 30, 300, 80, 40, 60) * 2
"""Taken in turns, the documents would leave the second process with almost nothing."""
CONTEXT, STRIDE, HIDDEN = 256, 128, 576
SIDES = ("long_logprobs", "short_logprobs")
PROGRAM = """
import json, sys, time
import torch
import longlens
from longlens.runs.processes import Processes
torch.set_num_threads(1)
source, out, model = sys.argv[1:]
began = time.monotonic()
scorer = longlens.load_scorer(model, dtype="float32")
documents = list(longlens.read_documents([source]))
longlens.score([documents[1]], scorer, context=None)
loaded = time.monotonic() - began
processes = Processes()
processes.connect()
processes.wait_for_all()
began, cpu = time.monotonic(), time.process_time()
longlens.score(documents, scorer, context=256, stride=128, out=out)
found = {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu, "loaded": loaded}
with open(f"{out}-{processes.rank}.json", "w") as file:
    json.dump(found, file)
"""


def run(number: int, program: Path, source: Path, out: Path, model: str) -> list[dict[str, Any]]:
    """Returns the measurements of each of the given number of processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)] if number > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, str(program), str(source), str(out), model]
    subprocess.run(command, check=True, env=environment)
    return [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in range(number)]


def heaviest(owners: Sequence[int]) -> float:
    """Of the costs of all documents, what the process with most has."""
    costs = [forward_cost(n, HIDDEN) + windows_cost(n, CONTEXT, STRIDE, HIDDEN) for n in TOKENS]
    first = sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == 0)
    return max(first, sum(costs) - first) / sum(costs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    asked = parser.parse_args()
    rounds = asked.rounds
    encode = load_encoder(asked.model).encode
    text = Path(textwrap.__file__).read_text(encoding="utf-8")
    ends = encode(text).char_spans[:, 1]
    found: dict[int, list[list[dict[str, Any]]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"id": f"d{at:02}", "text": text[: int(ends[n - 1])]} for at, n in enumerate(TOKENS)]
        source, program = folder / "documents.jsonl", folder / "program.py"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        program.write_text(PROGRAM)
        for at in range(rounds):
            for number in (1, 2):
                out = folder / f"{number}-{at}"
                found[number].append(run(number, program, source, out, asked.model))
                print(number, found[number][-1], file=sys.stderr, flush=True)
        alone, both = (longlens.open_scores(folder / f"{number}-0") for number in (1, 2))
        pairs = [(getattr(one, side), getattr(both.get(one.id), side)) for one in alone for side in SIDES]
        worst = max(float(np.nan_to_num(np.abs(one - other)).max()) for one, other in pairs)
        owners = [0 if row["id"] in _ids(folder / "2-0", 0) else 1 for row in rows]
    wall = [[max(one["seconds"] for one in every) for every in found[number]] for number in (1, 2)]
    ratios = [one / two for one, two in zip(*wall, strict=True)]
    balances = [statistics.mean(cpu) / max(cpu) for every in found[2] for cpu in [[one["cpu"] for one in every]]]
    rates = [len(TOKENS) / statistics.median(seconds) for seconds in wall]
    in_turns = heaviest([at % 2 for at in range(len(TOKENS))])
    cells = [
        ("documents per second, 1 process", f"{rates[0]:.3f}"),
        ("documents per second, 2 processes", f"{rates[1]:.3f}"),
        ("2 processes / 1 process", f"{statistics.median(ratios):.2f}"),
        ("over rounds", f"{min(ratios):.2f} to {max(ratios):.2f} ({rounds})"),
        ("balance: mean / largest CPU time", f"{statistics.median(balances):.2f}"),
        ("share of the FLOPs of the busier process", f"{100 * heaviest(owners):.0f} %"),
        ("had they been taken in turns", f"{100 * in_turns:.0f} %"),
        ("seconds to load and warm up, 1 / 2 processes", " / ".join(f"{_loaded(found[n]):.0f}" for n in (1, 2))),
        ("largest difference of a log-probability, nats", f"{worst:.1e}"),
    ]
    if asked.model == "smollm2":
        write_table("ranks", ["", "value"], cells, "docs/scale.md")
    else:
        print(markdown(["", "value"], cells))


def _ids(folder: Path, rank: int) -> set[str]:
    import pyarrow.parquet as pq

    parts = folder.glob(f"long/part-{rank:05d}-*")
    return {id for part in parts for id in pq.read_table(part, columns=["id"])["id"].to_pylist()}


def _loaded(every: Sequence[Sequence[dict[str, Any]]]) -> float:
    return statistics.median(max(one["loaded"] for one in run) for run in every)


if __name__ == "__main__":
    main()
