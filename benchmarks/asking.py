"""Measures the time to build RULER samples, compared with lm-evaluation-harness, and the time to the first request.

    python -m benchmarks.asking [seconds]      (about ten minutes of one core; `make test-real`'s environment)

- 100 samples of 32,768 tokens: ``longlens bench build``, and `generate_samples` of lm_eval's ``ruler`` with the same
  tokenizer, each a new process, seconds of the CPU with start-up. lm_eval downloads the text of the other tasks.
- ``longlens bench run`` of eleven tasks, 500 samples each, of 131,072 tokens: seconds until a server on this machine is
  asked for an answer, and the process's peak memory until it is stopped. The server answers with a word at once: what
  takes time is the building.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.memory import status_bytes
from benchmarks.startup import LONGLENS
from benchmarks.tables import write_table

SAMPLES, LENGTH = 100, 32768
BUILT = {
    "niah_single_1": ("repeat", "words", "numbers"),
    "niah_multikey_2": ("needle", "words", "numbers"),
    "niah_multikey_3": ("needle", "uuids", "uuids"),
    "niah_single_2": None,
    "vt": None,
    "cwe": None,
}
"""Tasks, with the arguments of lm_eval's `generate_samples` for each."""
PEER = """
import sys
from lm_eval.tasks.ruler.niah_utils import TEMPLATE
from lm_eval.tasks.ruler.prepare_niah import generate_samples, get_haystack
from longlens.models import load_tokenizer
haystack, key, value, length, samples = *sys.argv[1:4], *map(int, sys.argv[4:])
found = generate_samples(
    get_haystack(haystack), load_tokenizer("smollm2"), max_seq_length=length, type_haystack=haystack,
    type_needle_k=key, type_needle_v=value, template=TEMPLATE, num_samples=samples,
)
assert len(found) == samples
"""
TASKS = [
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe"),
]
RUN_SAMPLES, RUN_LENGTH = 500, 131072


def cpu_of(command: list[str]) -> float:
    """Returns the CPU seconds of a process."""
    before = os.times()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[:4]}: {done.stderr[-2000:]}")
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def build(folder: Path) -> None:
    rows = []
    for task, peer in BUILT.items():
        out = str(folder / f"{task}.jsonl")
        common = ["--length", str(LENGTH), "--samples", str(SAMPLES), "--tokenizer", "smollm2", "-o", out]
        ours = cpu_of([*LONGLENS, "bench", "build", task, *common])
        assert len(Path(out).read_text(encoding="utf-8").splitlines()) == SAMPLES
        theirs = None
        if peer is not None:
            theirs = cpu_of([sys.executable, "-W", "ignore", "-c", PEER, *peer, str(LENGTH), str(SAMPLES)])
        cells = ["-", "-"] if theirs is None else [f"{theirs:.1f}", f"{theirs / ours:.1f}"]
        rows.append([task, f"{ours:.1f}", *cells])
        print(rows[-1], file=sys.stderr, flush=True)
    columns = [f"{SAMPLES} samples of {LENGTH:,} tokens", "longlens, CPU s", "lm_eval, CPU s", "ratio"]
    write_table("asking_build", columns, rows, page="docs/bench.md", by="asking")


class Answers(ThreadingHTTPServer):
    """A server with OpenAI's completions API that counts requests and answers with one word."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[float] = []
        answers = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer({"data": [{"id": "word", "owned_by": "vllm", "max_model_len": RUN_LENGTH + 1024}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answers.asked.append(time.monotonic())
                several = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
                self.answer({"choices": [{"index": i, "text": "word"} for i in range(len(several))]})

            def answer(self, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def ask(folder: Path, seconds: float) -> None:
    with Answers() as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/v1#word"
        command = [*LONGLENS, "bench", "run", *TASKS, "--length", str(RUN_LENGTH), "--samples", str(RUN_SAMPLES)]
        command += ["--model", address, "--tokenizer", "smollm2", "--template", "none", "-o", str(folder / "run")]
        command += ["--max-length", str(RUN_LENGTH + 1024)]
        start = time.monotonic()
        with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            peak = 0
            while process.poll() is None and time.monotonic() - start < seconds:
                peak = status_bytes("VmHWM", process.pid)
                time.sleep(0.2)
            process.kill()
        if not server.asked:
            raise SystemExit((folder / "log").read_text()[-3000:])
        first, number = server.asked[0] - start, len(server.asked)
        server.shutdown()
    row = [
        f"{len(TASKS)} tasks x {RUN_SAMPLES} x {RUN_LENGTH:,} tokens",
        f"{first:.1f}",
        f"{peak / 1e6:,.0f}",
        f"{number:,} in {seconds:.0f} s",
    ]
    columns = ["`longlens bench run`", "first question, s", "peak MB", "questions"]
    write_table("asking_run", columns, [row], page="docs/bench.md", by="asking")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
    with tempfile.TemporaryDirectory() as made:
        ask(Path(made), seconds)
        build(Path(made))


if __name__ == "__main__":
    main()
