"""Measures peak memory of the whole process, loading included, on real models and a long text.

python -m benchmarks.memory        (about a quarter of an hour on two cores)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tables import write_table

CONTEXT, STRIDE = 4096, 1024
PROGRAM = """
import json, sys, time
import longlens
from benchmarks.memory import status_bytes
from pydoc_data.topics import topics
model, dtype, out = sys.argv[1:4]
length, context, stride = map(int, sys.argv[4:])
text = "\\n".join(topics[name] for name in sorted(topics))
scorer = longlens.load_scorer(model, dtype=dtype)
loaded, start = status_bytes("VmHWM") / 1e9, time.monotonic()
documents = [longlens.Document(id="topics", text=text)]
scores = longlens.score(documents, scorer, context=context, stride=stride, max_length=length, out=out)
seconds = time.monotonic() - start
tokens = len(scores[0].token_ids)
print(json.dumps({"tokens": tokens, "loaded_gb": loaded, "peak_gb": status_bytes("VmHWM") / 1e9, "seconds": seconds}))
"""


def status_bytes(name: str, process: int | str = "self") -> int:
    """Memory of a process in Linux: ``VmRSS`` is the current, ``VmHWM`` the peak value; of this process by default.

    Not ru_maxrss: a child begins with its parent's peak there.
    """
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def measure(model: str, dtype: str, length: int) -> dict[str, Any]:
    """Scores one document of ``length`` tokens in a new process: tokens, GB after loading, peak GB, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [model, dtype, f"{folder}/run", str(length), str(CONTEXT), str(STRIDE)]
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    rows = []
    for model, dtype, length in (("smollm2", "float32", 8191), ("gemma3-270m", "bfloat16", 32767)):
        found = measure(model, dtype, length)
        rows.append([model, dtype, found["tokens"], f"{found['loaded_gb']:.2f}", f"{found['peak_gb']:.2f}"])
    columns = ["model", "dtype", "tokens", "GB after loading", "peak GB"]
    write_table("memory", columns, rows, page="docs/precision.md")


if __name__ == "__main__":
    main()
