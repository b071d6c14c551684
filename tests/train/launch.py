"""Starts the processes of a run, and stops all of them whatever happens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(arguments: Sequence[str], size: int = 2, cwd: Path = ROOT, **environment: str) -> list[subprocess.Popen[str]]:
    """``python -m ARGUMENTS`` once a rank, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ranks = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        for rank in range(size)
    ]
    return [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=os.environ | shared | rank | environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]


def finish(started: Sequence[subprocess.Popen[str]], timeout: float = 100) -> list[str]:
    """What they printed; a rank that failed stops the others, as torchrun would, and fails the test."""
    end, outputs = time.monotonic() + timeout, [""] * len(started)
    try:
        with ThreadPoolExecutor(len(started)) as readers:
            reading = [readers.submit(process.communicate) for process in started]
            while not all(read.done() for read in reading):
                time.sleep(0.1)
                if time.monotonic() > end or any(process.poll() not in (None, 0) for process in started):
                    for process in started:
                        process.kill()
            outputs = [read.result()[0] for read in reading]
    finally:
        for process in started:
            process.kill()
            process.wait()
    ends = [process.returncode for process in started]
    assert ends == [0] * len(started), f"{ends}\n" + "\n".join(output[-3000:] for output in outputs)
    return outputs
