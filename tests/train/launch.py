"""Starts the processes of a run, and stops all of them whatever happens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


class Rank(subprocess.Popen[str]):
    """A process whose output goes to a file: a pipe that nobody reads fills up, and a rank that writes to it then waits
    in the middle of a step, and the other ranks with it.
    """

    def __init__(self, arguments: Sequence[str], **given: object) -> None:
        self._file: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - as long as the process
        super().__init__(arguments, stdout=self._file, stderr=subprocess.STDOUT, text=True, **given)

    def output(self) -> str:
        """What it has printed."""
        self._file.seek(0)
        return self._file.read()


def start(arguments: Sequence[str], size: int = 2, cwd: Path = ROOT, **environment: str) -> list[Rank]:
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
    command = [sys.executable, "-m", *arguments]
    return [Rank(command, env=os.environ | shared | rank | environment, cwd=cwd) for rank in ranks]


def finish(started: Sequence[Rank], timeout: float = 100) -> list[str]:
    """What they printed; a rank that failed stops the others, as torchrun would, and fails the test."""
    end = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in started):
            time.sleep(0.1)
            if time.monotonic() > end or any(process.poll() not in (None, 0) for process in started):
                break
    finally:
        for process in started:
            process.kill()
            process.wait()
    ends, outputs = [process.returncode for process in started], [process.output() for process in started]
    assert ends == [0] * len(started), f"{ends}\n" + "\n".join(output[-3000:] for output in outputs)
    return outputs
