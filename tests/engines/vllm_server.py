"""vLLM's own server on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def server(path: Path, log: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The server on a free port: its address and its process, which is ended with all that it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("vllm"), "serve", path, "--served-model-name", "smol", "--port", port]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", 2048]
    command += ["--max-num-seqs", 8, "--kv-cache-memory-bytes", 2**29, *options]
    with log.open("ab") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=out, start_new_session=True)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}/v1#smol", process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Kill -9 for the server and its workers, as the out-of-memory killer does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
