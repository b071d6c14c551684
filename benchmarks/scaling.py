"""Measures how commands after scoring scale with the number of documents: seconds and peak memory.

    python -m benchmarks.scaling [documents]      (1,000 documents of 32,768 tokens: a few minutes, 1 GB of disk)

The scores are written by `longlens.score` from an engine that answers with random numbers, so that the folders are
those of a real run. Each command runs in a process of its own on a quarter, a half and all of the documents; cost that
is linear has equal seconds per 1,000 documents, and bounded memory equal peaks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import longlens
from benchmarks.tables import write_table
from longlens.scoring.scorer import Request, Result, ScorerInfo
from longlens.tokenization import Encoded

TOKENS = 32768
CHARACTERS = 4
CONTEXT, STRIDE = 4096, 4096
COMMANDS = ("perplexity", "keys", "export", "report")
PROGRAM = """
import json, pathlib, re, sys
from longlens.cli import main
status = pathlib.Path("/proc/self/status")  # not ru_maxrss: a child begins with its parent's peak there
try:
    main(sys.argv[1:])
except SystemExit as exit:
    assert not exit.code, exit.code
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024 / 1e6
print(json.dumps(peak), file=sys.stderr)
"""


class RandomScorer:
    """Tokens of four characters, and random log-probabilities: now and then a token gains from a long context."""

    info = ScorerInfo(
        name="random",
        source="drawn",
        architecture="none",
        weights_sha256="0" * 64,
        tokenizer_sha256="1" * 64,
        max_length=TOKENS,
        dtype="float32",
        device="cpu",
        attention="none",
        bos_token_id=None,
    )

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def encode(self, document: longlens.Document) -> Encoded:
        starts = np.arange(0, len(document.text), CHARACTERS)
        ids = self._generator.zipf(1.3, len(starts)) % 50000
        return Encoded(ids, np.stack([starts, np.minimum(starts + CHARACTERS, len(document.text))], axis=1))

    def logprobs(self, requests: Iterable[Request]) -> Iterator[Result]:
        for request in requests:
            number = len(request.token_ids) - request.start
            drawn = -self._generator.exponential(2.5, number)
            if not request.is_short:
                drawn = np.where(self._generator.random(number) < 0.02, drawn / 100, drawn)
            yield Result(request.key, drawn.astype(np.float32))


def documents(number: int) -> Iterator[longlens.Document]:
    words = np.array(["long", "lens", "text", "key ", "tok ", "a b "])
    for index in range(number):
        text = "".join(words[np.random.default_rng(index).integers(len(words), size=TOKENS)])
        yield longlens.Document(id=f"document-{index:07d}", text=text)


def run(*arguments: str) -> tuple[float, float]:
    """Returns seconds and peak MB of a command in a new process."""
    start = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.monotonic() - start
    if done.returncode:
        raise SystemExit(f"longlens {' '.join(arguments)}: {done.stderr[-2000:]}")
    return seconds, float(json.loads(done.stderr.splitlines()[-1]))


def main() -> None:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    found: dict[str, list[tuple[int, float, float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for number in (total // 4, total // 2, total):
            scores = str(folder / f"scores-{number}")
            start = time.monotonic()
            longlens.score(documents(number), RandomScorer(), context=CONTEXT, stride=STRIDE, out=scores)
            print(f"{number} documents written in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            out = {"keys": "keys.jsonl", "export": "tokens.parquet", "report": "report.html"}
            for name in COMMANDS:
                extra = ["-o", str(folder / f"{number}-{out[name]}")] if name in out else []
                seconds, peak = run(name, scores, *extra)
                found.setdefault(name, []).append((number, seconds, peak))
                print(f"{name} of {number}: {seconds:.1f} s, {peak:.0f} MB", file=sys.stderr, flush=True)
    rows = [
        [f"`longlens {name}`", f"{number:,}", f"{seconds:.1f}", f"{1000 * seconds / number:.1f}", f"{peak:,.0f}"]
        for name, runs in found.items()
        for number, seconds, peak in runs
    ]
    columns = ["command", f"documents of {TOKENS:,} tokens", "s", "s per 1,000 documents", "peak MB"]
    write_table("scaling", columns, rows, page="docs/scale.md")


if __name__ == "__main__":
    main()
