"""Real processes of one run, as torchrun or another launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS = 200


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """What the command line of a process says."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def torchrun(number: int, *arguments: object, cwd: Path, **environment: str) -> Ended:
    """``torchrun --standalone --nproc-per-node NUMBER ARGUMENTS``, which starts a script, or with ``-m`` a module."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    return _ended([started([*command, *map(str, arguments)], cwd, environment)])[0]


def processes(number: int, *arguments: object, cwd: Path, has_agent: bool = False, **environment: str) -> list[Ended]:
    """The same script in so many processes as another launcher starts them, the first of which has the store.

    With ``has_agent`` the store is as torchrun's agent has it, which ends no process here where another one is killed.
    """
    if has_agent:
        from torch.distributed import TCPStore

        agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = agent.port
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}
    own = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    return _ended([started([str(one) for one in arguments], cwd, environment) for environment in own])


def started(arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Python with these arguments."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(every: list[subprocess.Popen[str]]) -> list[Ended]:
    # At one time: a process whose pipe is not read fills it, and waits in the middle of what it does with the others.
    with ThreadPoolExecutor(len(every)) as readers:
        try:
            reading = [readers.submit(one.communicate, timeout=SECONDS) for one in every]
            outputs = [read.result() for read in reading]
        finally:
            for one in every:
                one.terminate()  # torchrun ends its processes then
    return [Ended(one.returncode, *output) for one, output in zip(every, outputs, strict=True)]
