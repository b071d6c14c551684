"""Real processes of one run, as torchrun or another launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

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
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    own = _environments(number, agent.port if has_agent else None)
    return _ended([started([str(one) for one in arguments], cwd, one | environment) for one in own])


def started(arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Python with these arguments."""
    given = _python(arguments, cwd, environment)
    return subprocess.Popen(**given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Rank(subprocess.Popen[str]):
    """A process whose output goes to a file: a pipe that nobody reads fills up, and a rank that writes to it then waits
    in the middle of a step, and the other ranks with it.
    """

    def __init__(self, **given: Any) -> None:
        self._file: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - as long as the process
        super().__init__(stdout=self._file, stderr=subprocess.STDOUT, text=True, **given)

    def output(self) -> str:
        """What it has printed."""
        self._file.seek(0)
        return self._file.read()


def start(arguments: Sequence[str], size: int = 2, cwd: Path = ROOT, **environment: str) -> list[Rank]:
    """``python -m ARGUMENTS`` once a rank, as `processes`, to be killed or to `finish`."""
    return [Rank(**_python(["-m", *arguments], cwd, one | environment)) for one in _environments(size)]


def finish(ranks: Sequence[Rank], timeout: float = 100) -> list[str]:
    """What they printed; a rank that failed stops the others, as torchrun would, and fails the test."""
    end = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in ranks):
            time.sleep(0.1)
            if time.monotonic() > end or any(process.poll() not in (None, 0) for process in ranks):
                break
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    ends, outputs = [process.returncode for process in ranks], [process.output() for process in ranks]
    assert ends == [0] * len(ranks), f"{ends}\n" + "\n".join(output[-3000:] for output in outputs)
    return outputs


def _environments(number: int, port: int | None = None) -> list[dict[str, str]]:
    """Of each process, as a launcher sets them; the first has the store unless there is one at the port."""
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(port)
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def _python(arguments: Sequence[str], cwd: Path, environment: dict[str, str]) -> dict[str, Any]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return {"args": [sys.executable, *arguments], "cwd": cwd, "env": env}


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
