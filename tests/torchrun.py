"""Real processes of torchrun, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS = 300


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
    """Starts a script, or with ``-m`` a module, in so many processes; all of them have ended when it returns."""
    return run("--standalone", "--nproc-per-node", number, *arguments, cwd=cwd, **environment)


def run(*arguments: object, cwd: Path, **environment: str) -> Ended:
    """``torchrun ARGUMENTS``."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    added = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **added},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            out, err = started.communicate(timeout=SECONDS)
        finally:
            started.terminate()  # torchrun ends its processes then
    return Ended(started.returncode, out, err)
