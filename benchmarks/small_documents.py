"""Scores 100,000 small documents with a tiny random model: time, files, memory, and startup of a resumed run.

python -m benchmarks.small_documents        (a few minutes on two cores)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tables import write_table

NUM_DOCUMENTS = 100_000
PROGRAM = """
import json, resource, sys, time
import longlens
from longlens.scoring.transformers import TransformersScorer
from tests.tiny import byte_tokenizer, tiny_model
source, out, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
scorer = TransformersScorer(tiny_model("llama"), byte_tokenizer(), name="tiny", weights_sha256="tiny")
documents = longlens.read_documents([source])
if stop:
    import itertools
    documents = itertools.islice(documents, stop)
loaded, start = peak(), time.monotonic()
scores = longlens.score(documents, scorer, context=32, stride=16, out=out)
seconds = time.monotonic() - start
tokens = sum(len(row.token_ids) for row in scores)
print(json.dumps({"documents": len(scores), "tokens": tokens, "seconds": seconds, "loaded": loaded, "peak": peak(),
                  "reading": time.monotonic() - start - seconds}))
"""


def run(source: Path, out: Path, stop: int = 0) -> dict[str, Any]:
    """Scores the documents, the first ``stop`` of them or all, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(source), str(out), str(stop)]
    # A tiny model is faster with one thread than with several.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"files": len(list(out.glob("**/part-*.parquet")))}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "documents.jsonl", Path(folder) / "run"
        with source.open("w", encoding="utf-8") as file:
            for i in range(NUM_DOCUMENTS):
                text = f"Document {i} of many small ones" + ", and on it goes" * (i % 5)
                file.write(json.dumps({"id": f"d{i:06d}", "text": text}) + "\n")
        rows = []
        for name in ("first run", "the same command again"):
            found = run(source, out)
            numbers = [found["documents"], found["tokens"], found["files"], f"{found['seconds']:.0f}"]
            rows.append([name, *numbers, f"{found['reading']:.0f}", f"{found['loaded']:.2f}", f"{found['peak']:.2f}"])
    columns = ["", "documents", "tokens", "files", "seconds", "seconds to read all scores", "GB at start", "peak GB"]
    write_table("small_documents", columns, rows, page="docs/artifacts.md")


if __name__ == "__main__":
    main()
